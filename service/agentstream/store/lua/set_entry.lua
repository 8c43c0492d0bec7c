-- Change the queue entry of a run that a worker executes, because the broker has lost the entry.
-- KEYS[1] run. ARGV: worker id, entry id that the run has now, entry id to set, worker id to set.
-- An empty entry id means that the run is about to get another entry; its worker may set it twice. Returns 1, or 0 if
-- the run has another entry or another worker, or is not running.
local entry, worker, status = unpack(redis.call('HMGET', KEYS[1], 'entry', 'worker', 'status'))
if worker ~= ARGV[1] or status ~= 'running' or entry ~= '' and entry ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'entry', ARGV[3], 'worker', ARGV[4])
return 1
