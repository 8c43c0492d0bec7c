-- Count a request against the limits of its API key.
-- KEYS[1] the key's active runs, KEYS[2] its requests of this minute.
-- ARGV: run id, maximum of active runs or 0, maximum of requests a minute or 0, longest duration of a run in s.
-- Returns nil if the request is within the limits, else {name of the limit, its use, seconds to wait before a retry}; if
-- the limit is that of active runs, followed by the ids of up to 100 active runs, the oldest first.
local now = tonumber(redis.call('TIME')[1])
if ARGV[3] ~= '0' then
  local requests = redis.call('INCR', KEYS[2])
  if requests == 1 then redis.call('EXPIRE', KEYS[2], 60) end
  if requests > tonumber(ARGV[3]) then return {'requests', requests - 1, redis.call('TTL', KEYS[2])} end
end
if ARGV[2] ~= '0' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  local active = redis.call('ZCARD', KEYS[1])
  if active >= tonumber(ARGV[2]) then return {'runs', active, 1, unpack(redis.call('ZRANGE', KEYS[1], 0, 99))} end
  redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
return false
