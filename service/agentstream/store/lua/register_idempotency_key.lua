-- Remember what an idempotency key stands for, unless it stands for something. KEYS[1] key. ARGV: meaning, ttl in s.
-- Returns the earlier meaning, or nil.
local earlier = redis.call('GET', KEYS[1])
if earlier then return earlier end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return false
