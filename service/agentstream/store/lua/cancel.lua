-- Store a cancel: end a queued or parked run at once, and send a running run's id to its worker.
-- KEYS[1] run, KEYS[2] log and channel. ARGV: terminal event, prefix of control channels, run id, TTL in s.
-- Returns the status before this call: queued, running, requires_action, or the final status; nil if there is no such
-- run. A run that has begun ends with the usage that it had when it was parked.
local status, worker, usage = unpack(redis.call('HMGET', KEYS[1], 'status', 'worker', 'usage'))
if status == 'queued' or status == 'requires_action' then
  local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
  local event = usage and '["run_cancelled",{"usage":' .. usage .. '}]' or ARGV[1]
  local batch = '{"v":1,"a":' .. attempt .. ',"s":1,"e":[' .. event .. ']}'
  redis.call('XADD', KEYS[2], attempt .. '-1', 'b', batch)
  redis.call('EXPIRE', KEYS[2], ARGV[4])
  redis.call('HSET', KEYS[1], 'status', 'cancelled')
  if usage then redis.call('HSET', KEYS[1], 'state', '', 'job', '', 'interrupts', '', 'inputs', '') end
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('PUBLISH', KEYS[2], batch)
elseif status == 'running' then
  redis.call('HSET', KEYS[1], 'cancel', 1)
  redis.call('PUBLISH', ARGV[2] .. worker, ARGV[3])
end
return status
