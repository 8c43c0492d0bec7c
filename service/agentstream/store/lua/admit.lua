-- Enqueue a job unless the queue is full.
-- KEYS[1] jobs. ARGV: maximum of outstanding jobs, envelope.
-- Returns the entry id; if the queue is full, {outstanding jobs, jobs removed so far or -1, server time in s}.
local outstanding = redis.call('XLEN', KEYS[1])
if outstanding < tonumber(ARGV[1]) then return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2]) end
local removed = -1
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then removed = info[i + 1] - outstanding end
end
return {outstanding, removed, tonumber(redis.call('TIME')[1])}
