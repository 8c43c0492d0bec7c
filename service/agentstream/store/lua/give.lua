-- Give a job to the worker that executes it, because the queue has lost that worker's claim and delivered the job again.
-- KEYS[1] jobs. ARGV: group, consumer, entry id, consumer that gets the job.
-- Returns 1, or 0 if this worker does not hold the job.
local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #held == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, ARGV[3], 'JUSTID')
return 1
