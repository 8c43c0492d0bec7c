-- Store answers to the interrupts of a run and, if none is open any more, let the run go on.
-- KEYS[1] run, KEYS[2] log and channel. ARGV: the stored interrupts and answers that the caller has read, the new
-- answers, '1' if every interrupt is answered, run_resumed event, TTL in s, prefix of control channels, message for the
-- run's worker.
-- Returns the status before this call; PARKING if the worker is about to park the run; CHANGED if the caller must read
-- the run again; LOST if the run has no log.
local status, interrupts, answers, waits, worker = unpack(redis.call('HMGET', KEYS[1],
  'status', 'interrupts', 'answers', 'waits', 'worker'))
if not status or interrupts ~= ARGV[1] or (answers or '') ~= ARGV[2] then return 'CHANGED' end
if status == 'running' and not (waits and waits == '1') then return 'PARKING' end
if status == 'running' then
  redis.call('HSET', KEYS[1], 'answers', ARGV[3])
  redis.call('PUBLISH', ARGV[7] .. worker, ARGV[8])
  return status
end
if status ~= 'requires_action' then return 'CHANGED' end
if ARGV[4] == '1' then
  local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  if not last then return 'LOST' end
  local attempt, seq = string.match(last[1], '^(%d+)-(%d+)$')
  seq = string.format('%.0f', seq + 1)
  local id = attempt .. '-' .. seq
  local batch = '{"v":1,"a":' .. attempt .. ',"s":' .. seq .. ',"e":[' .. ARGV[5] .. ']}'
  redis.call('XADD', KEYS[2], id, 'b', batch)
  redis.call('HSET', KEYS[1], 'answers', ARGV[3], 'status', 'queued', 'resumed_at', id)
  redis.call('HINCRBY', KEYS[1], 'resumes', 1)
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
  redis.call('PUBLISH', KEYS[2], batch)
else
  redis.call('HSET', KEYS[1], 'answers', ARGV[3])
end
return status
