-- Count the workers that beat lately, by the server's clock. KEYS[1] workers. ARGV: seconds a beat counts.
local now = tonumber(redis.call('TIME')[1])
return redis.call('ZCOUNT', KEYS[1], now - tonumber(ARGV[1]), '+inf')
