-- Remove a finished job, if this worker still holds it.
-- KEYS[1] jobs. ARGV: group, consumer, entry id, '1' to remove it also if no worker holds it.
-- Returns 1, or 0 if it was not removed. XACK alone does not check who holds it.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if held and held[2] ~= ARGV[2] or not held and ARGV[4] ~= '1' then return 0 end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return redis.call('XDEL', KEYS[1], ARGV[3])
