-- Note how far a run has come, for whoever lists open runs. KEYS[1] run. ARGV: worker id, the agent's name, tokens.
-- Only for the worker whose attempt it is; nor is a hash made anew that is gone, as it would have no TTL.
if redis.call('HGET', KEYS[1], 'worker') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'agent', ARGV[2], 'tokens', ARGV[3])
return 1
