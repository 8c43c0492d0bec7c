-- Append a batch to a run's replay log, then publish it; a refused append publishes and stores nothing.
-- KEYS[1] log and channel, KEYS[2] run. ARGV: entry id, batch, '1' to create the log, smallest id to keep or '',
-- id that the last entry must have or '' (not checked), TTL in s or '0', then fields and values for the run's hash.
-- Returns OK, DUPLICATE (stored before; sent again after a lost reply), FENCED (a newer attempt has begun), or
-- {LOST, last id} if entries before this one are missing from the log.
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
local add = {'XADD', KEYS[1]}
if ARGV[3] ~= '1' then add[#add + 1] = 'NOMKSTREAM' end
if ARGV[4] ~= '' then
  add[#add + 1] = 'MINID'
  add[#add + 1] = '~'
  add[#add + 1] = ARGV[4]
end
add[#add + 1] = ARGV[1]
add[#add + 1] = 'b'
add[#add + 1] = ARGV[2]
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
if #ARGV > 6 and redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], unpack(ARGV, 7)) end
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 'OK'
