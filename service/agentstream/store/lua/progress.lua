-- Store the progress of a run, for commands that list open runs.
-- KEYS[1] run. ARGV: worker id, the agent's name, tokens.
-- Returns 1, or 0 if nothing was stored: another worker has begun a newer attempt, or the hash is gone. The script does
-- not create the hash again, because it would have no TTL.
if redis.call('HGET', KEYS[1], 'worker') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'agent', ARGV[2], 'tokens', ARGV[3],
  'seen', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return 1
