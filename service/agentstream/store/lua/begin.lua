-- Begin an attempt at a run: count it, and append and publish its run_started, which fences every older attempt.
-- KEYS[1] run, KEYS[2] log and channel. ARGV: queue entry id, worker id, TTL in s, unique token of this call, '1' if the
-- worker's agent can continue the run, '1' if it takes messages while it works, '1' if the queue has delivered the entry
-- as a new one.
-- Returns {attempt, cancel flag, number of hand-backs, ms since the job was enqueued, ms since the last sign of life of
-- the earlier attempt's worker or 0}; DUPLICATE if another queue entry carries this run, because the job was enqueued
-- again after a lost reply; ENDED if the terminal event is stored; or {HELD, worker id} if a worker executes the run,
-- and the queue has lost its claim.
local entry, status, attempt, cancel, handed_back, token, seen, worker = unpack(redis.call('HMGET', KEYS[1],
  'entry', 'status', 'attempt', 'cancel', 'handed_back', 'token', 'seen', 'worker'))
if entry and entry ~= '' and entry ~= ARGV[1] then return 'DUPLICATE' end
if status and status ~= 'queued' and status ~= 'running' then return 'ENDED' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local waited = math.max(0, now - tonumber(string.match(ARGV[1], '^%d+')))
local silent = seen and math.max(0, now - tonumber(seen)) or 0
attempt, cancel, handed_back = tonumber(attempt or 0), cancel and 1 or 0, tonumber(handed_back or 0)
if token == ARGV[4] then return {attempt, cancel, handed_back, waited, silent} end  -- sent twice, after a lost reply
if ARGV[7] == '1' and status == 'running' and entry and worker and worker ~= ARGV[2] then return {'HELD', worker} end
attempt = attempt + 1
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then attempt = math.max(attempt, tonumber(string.match(last[1], '^%d+')) + 1) end
redis.call('HSET', KEYS[1], 'entry', ARGV[1], 'worker', ARGV[2], 'status', 'running', 'attempt', attempt,
  'token', ARGV[4], 'seen', string.format('%.0f', now))
if ARGV[6] == '1' or attempt > 1 then redis.call('HSET', KEYS[1], 'takes_inputs', ARGV[6] or '0') end
-- Whether answers to open questions of earlier attempts are stored for an agent that waits in its worker.
if attempt > 1 then redis.call('HSET', KEYS[1], 'waits', ARGV[5] == '1' and '0' or '1') end
if entry == '' then redis.call('HSET', KEYS[1], 'job', '') end  -- the queue entry has it again
redis.call('EXPIRE', KEYS[1], ARGV[3])
local resumes = ARGV[5] == '1' and attempt > 1 and ',"resumes":true' or ''
local batch = '{"v":1,"a":' .. attempt .. ',"s":1,"e":[["run_started",{"worker":"' .. ARGV[2] .. '"' .. resumes .. '}]]}'
redis.call('XADD', KEYS[2], attempt .. '-1', 'b', batch)
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('PUBLISH', KEYS[2], batch)
return {attempt, cancel, handed_back, waited, silent}
