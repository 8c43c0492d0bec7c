-- Store a heartbeat of a worker, by the server's clock.
-- KEYS[1] workers. ARGV: worker id, validity of a heartbeat in s.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.status_reply('OK')
