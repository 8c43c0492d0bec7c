-- Hand a job back: the next reclaim takes it at once. KEYS[1] jobs. ARGV: group, consumer, entry id, idle ms to pretend.
-- Returns 1, or 0 if another worker holds it.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'JUSTID')
return 1
