-- Store a cancel: end a queued run at once, and send a running run's id to its worker.
-- KEYS[1] run, KEYS[2] log and channel. ARGV: terminal event, prefix of control channels, run id, TTL in s.
-- Returns the status before this call: queued, running, or the final status; nil if there is no such run.
local status, worker = unpack(redis.call('HMGET', KEYS[1], 'status', 'worker'))
if status == 'queued' then
  local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
  local batch = '{"v":1,"a":' .. attempt .. ',"s":1,"e":[' .. ARGV[1] .. ']}'
  redis.call('XADD', KEYS[2], attempt .. '-1', 'b', batch)
  redis.call('EXPIRE', KEYS[2], ARGV[4])
  redis.call('HSET', KEYS[1], 'status', 'cancelled')
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('PUBLISH', KEYS[2], batch)
elseif status == 'running' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  redis.call('PUBLISH', ARGV[2] .. worker, ARGV[3])
end
return status
