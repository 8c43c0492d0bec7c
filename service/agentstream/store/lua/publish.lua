-- Append a batch to a run's replay log, then publish it; a refused append publishes and stores nothing.
-- KEYS[1] log and channel, KEYS[2] run. ARGV: entry id, batch, '1' to create the log, smallest id to keep or '',
-- id that the last entry must have or '' (not checked), TTL in s or '0', then fields and values for the run's hash. The
-- first pair may be `unapplied` and the part of the batch that a list of messages replaces, if the run has such. The
-- event that parks a run ends it instead, if a cancel is stored.
-- With KEYS[3], the jobs, the last three arguments are group, consumer and entry id: with the event the job is removed,
-- if this worker still holds it.
-- Returns OK, REMOVED (stored, and the job is removed), DUPLICATE (stored before; sent again after a lost reply),
-- FENCED (a newer attempt has begun), or {LOST, last id} if entries before this one are missing from the log.
local function last_id()
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  return last and last[1] or '0-0'
end
local function attempt_of(id) return tonumber(string.match(id, '^%d+')) end
if ARGV[5] ~= '' then
  local last = last_id()
  if last == ARGV[1] then return 'DUPLICATE' end
  if last ~= ARGV[5] then
    if attempt_of(last) > attempt_of(ARGV[1]) then return 'FENCED' end
    return {'LOST', last}
  end
end
local batch = ARGV[2]
-- A cancel may have come while the worker was about to park the run. Then nobody would end the run.
local ends = ARGV[7] == 'status' and ARGV[8] == 'requires_action' and redis.call('HGET', KEYS[2], 'cancel')
if ends then batch = string.gsub(batch, '"run_parked"', '"run_cancelled"', 1) end
if ARGV[7] == 'unapplied' then  -- say in the terminal event which messages the agent has not taken
  local count, applied = unpack(redis.call('HMGET', KEYS[2], 'inputs_count', 'inputs_applied'))
  local left = {}
  for i = tonumber(applied or 0) + 1, tonumber(count or 0) do left[#left + 1] = '"input-' .. i .. '"' end
  local start, stop = string.find(batch, ARGV[8], 1, true)
  if start and #left > 0 then
    local list = '"unapplied_inputs":[' .. table.concat(left, ',') .. ']'
    batch = string.sub(batch, 1, start - 1) .. list .. string.sub(batch, stop + 1)
  end
end
local add = {'XADD', KEYS[1]}
if ARGV[3] ~= '1' then add[#add + 1] = 'NOMKSTREAM' end
if ARGV[4] ~= '' then
  add[#add + 1] = 'MINID'
  add[#add + 1] = '~'
  add[#add + 1] = ARGV[4]
end
add[#add + 1] = ARGV[1]
add[#add + 1] = 'b'
add[#add + 1] = batch
local added = redis.pcall(unpack(add))
if added == false then return {'LOST', '0-0'} end
if type(added) == 'table' and added.err then
  if not string.find(tostring(added.err), 'equal or smaller', 1, true) then return redis.error_reply(added.err) end
  if attempt_of(last_id()) == attempt_of(ARGV[1]) then return 'DUPLICATE' end
  return 'FENCED'
end
if ARGV[6] ~= '0' then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
end
local first = ARGV[7] == 'unapplied' and 9 or 7
local fields_end = KEYS[3] and #ARGV - 3 or #ARGV
if fields_end >= first and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[2], unpack(ARGV, first, fields_end))
end
if ends then redis.call('HSET', KEYS[2], 'status', 'cancelled', 'state', '', 'job', '', 'interrupts', '', 'inputs', '') end
redis.call('PUBLISH', KEYS[1], batch)
if KEYS[3] then
  local group, consumer, entry = unpack(ARGV, fields_end + 1)
  local held = redis.pcall('XPENDING', KEYS[3], group, entry, entry, 1)[1]  -- the queue may be lost
  if held and held[2] == consumer then
    redis.call('XACK', KEYS[3], group, entry)
    redis.call('XDEL', KEYS[3], entry)
    return 'REMOVED'
  end
end
return 'OK'
