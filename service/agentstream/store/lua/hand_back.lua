-- Hand a job back: set its idle time, so that the next reclaim takes it at once, and tell the workers of the queue.
-- KEYS[1] jobs. ARGV: group, consumer, entry id, idle time to set in ms, channel of the queue's workers.
-- Returns 1, or 0 if this worker does not hold the job.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', ARGV[4], 'JUSTID')
redis.call('PUBLISH', ARGV[5], ARGV[3])
return 1
