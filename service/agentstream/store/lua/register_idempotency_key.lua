-- Store the value of an idempotency key, unless it has one.
-- KEYS[1] key. ARGV: value, TTL in s. Returns the earlier value, or nil.
local earlier = redis.call('GET', KEYS[1])
if earlier then return earlier end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return false
