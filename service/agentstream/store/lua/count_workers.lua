-- Count the workers with a valid heartbeat, by the server's clock.
-- KEYS[1] workers. ARGV: validity of a heartbeat in s.
local now = tonumber(redis.call('TIME')[1])
return redis.call('ZCOUNT', KEYS[1], now - tonumber(ARGV[1]), '+inf')
