-- Ask for a run's end, durably. A queued run is ended here and now; a running one's worker is told.
-- KEYS[1] run, KEYS[2] log and channel. ARGV: terminal event, control channels' prefix, run id, ttl in s.
-- Returns the status before: queued, running, or how it had ended already; nil if there is no such run.
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
