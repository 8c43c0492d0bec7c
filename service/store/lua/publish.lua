-- Append a batch to a run's replay log, then publish it; a refused append publishes nothing.
-- KEYS[1] log and channel. ARGV: entry id, batch, '1' to create the log, ttl in ms or '0', least id kept or ''.
-- Returns OK, DUPLICATE (sent again after a lost reply), FENCED (a newer attempt began), LOST (no log to append to).
local add = {'XADD', KEYS[1]}
if ARGV[3] ~= '1' then add[#add + 1] = 'NOMKSTREAM' end
if ARGV[5] ~= '' then
  add[#add + 1] = 'MINID'
  add[#add + 1] = '~'
  add[#add + 1] = ARGV[5]
end
add[#add + 1] = ARGV[1]
add[#add + 1] = 'b'
add[#add + 1] = ARGV[2]
local added = redis.pcall(unpack(add))
if added == false then return 'LOST' end
if type(added) == 'table' and added.err then
  if not string.find(tostring(added.err), 'equal or smaller', 1, true) then return redis.error_reply(added.err) end
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if last and string.match(last[1], '^%d+') == string.match(ARGV[1], '^%d+') then return 'DUPLICATE' end
  return 'FENCED'
end
if ARGV[4] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 'OK'
