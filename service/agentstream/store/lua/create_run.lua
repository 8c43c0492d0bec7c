-- Describe a new run, unless it is described already (a request sent again). KEYS[1] run. ARGV: ttl in s, fields.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
