-- Compare a run with its publisher, because the broker may have lost its last writes.
-- KEYS[1] log, KEYS[2] run. ARGV: attempt, worker id or '' (the hash is not checked), queue entry id, TTL in s, then
-- fields and values of the run's hash as create_run.lua stores them, or none.
-- If the begin of the attempt is lost, it is stored again in the hash. Returns {LAST, id of the last entry of the log or
-- 0-0}; HASH if the hash is lost and no fields were given; FENCED if another worker has begun this attempt or a newer
-- one, or if the run has ended without this publisher.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
last = last and last[1] or '0-0'
local mine = tonumber(ARGV[1])
if tonumber(string.match(last, '^%d+')) > mine then return 'FENCED' end
if ARGV[2] == '' then return {'LAST', last} end
local status, attempt, worker, owner = unpack(redis.call('HMGET', KEYS[2], 'status', 'attempt', 'worker', 'owner'))
attempt = tonumber(attempt or 0)
if attempt > mine then return 'FENCED' end
if attempt == mine then
  if worker ~= ARGV[2] and worker ~= '' then return 'FENCED' end  -- a parked run has an empty worker
  if owner then return {'LAST', last} end
elseif status and status ~= 'queued' and status ~= 'running' and status ~= 'requires_action' then
  return 'FENCED'
end
if not owner then
  if not ARGV[5] then return 'HASH' end
  for i = 5, #ARGV, 2 do
    if ARGV[i] ~= 'status' or not status then redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
  end
end
if attempt < mine then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[2], 'entry', ARGV[3], 'worker', ARGV[2], 'status', 'running', 'attempt', mine,
    'seen', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
return {'LAST', last}
