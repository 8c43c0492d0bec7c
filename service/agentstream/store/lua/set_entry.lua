-- Set the queue entry of a run that a worker executes, because the broker has lost its entry or its claim.
-- KEYS[1] run. ARGV: worker id, entry id, '1' if the worker hands the run over: then the run gets no worker, and its
-- attempt does not count. An empty entry id means that the job is about to be enqueued again.
-- Returns 1, also when it is called again; 0 if the run is not running, or has another worker.
local entry, worker, status = unpack(redis.call('HMGET', KEYS[1], 'entry', 'worker', 'status'))
if status ~= 'running' then return 0 end
if worker ~= ARGV[1] then return ARGV[3] == '1' and worker == '' and entry == ARGV[2] and 1 or 0 end
redis.call('HSET', KEYS[1], 'entry', ARGV[2])
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'worker', '')
  redis.call('HINCRBY', KEYS[1], 'handed_back', 1)
end
return 1
