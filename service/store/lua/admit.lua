-- Enqueue a job unless the queue is full. KEYS[1] jobs. ARGV: most outstanding jobs, envelope.
-- Returns the entry id, or the number of outstanding jobs if it is full.
local outstanding = redis.call('XLEN', KEYS[1])
if outstanding >= tonumber(ARGV[1]) then return outstanding end
return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
