-- Remove a finished job, if this worker still holds it.
-- KEYS[1] jobs. ARGV: group, consumer, entry id.
-- Returns 1, or 0 if this worker does not hold it. XACK alone does not check that.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return redis.call('XDEL', KEYS[1], ARGV[3])
