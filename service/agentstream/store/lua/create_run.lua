-- Create the hash of a run, unless it exists because the request was sent again.
-- KEYS[1] run. ARGV: TTL in s, then fields and values. Returns 1, or 0 if the hash exists.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
