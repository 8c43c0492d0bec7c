-- Begin an attempt at a run. KEYS[1] run. ARGV: queue entry id, worker id, ttl in s.
-- Returns the attempt, or 0 if another queue entry carries this run (an enqueue sent again after a lost reply).
local entry = redis.call('HGET', KEYS[1], 'entry')
if entry and entry ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'entry', ARGV[1], 'worker', ARGV[2], 'status', 'running')
redis.call('EXPIRE', KEYS[1], ARGV[3])
return redis.call('HINCRBY', KEYS[1], 'attempt', 1)
