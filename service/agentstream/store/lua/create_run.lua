-- Create the hash of a run, unless it exists because the request was sent again.
-- KEYS[1] run. ARGV: TTL in s, then fields and values. Returns 1, or 0 if the hash exists.
-- A hash without an owner is that of a run that has begun, but whose creation a failover of Redis has lost. It gets the
-- missing fields.
if redis.call('HEXISTS', KEYS[1], 'owner') == 1 then return 0 end
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
