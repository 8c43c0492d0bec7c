-- Take over one job whose lease expired.
-- KEYS[1] jobs. ARGV: group, consumer, lease in ms, server time in ms before this call, longest delay since then in ms.
-- Returns {entry id, fields}, nil if there is no such job, or STALLED if the server stalled before this call. After a
-- stall, leases look expired because their workers could not renew them.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now - tonumber(ARGV[4]) > tonumber(ARGV[5]) then return 'STALLED' end
local start = '0-0'
repeat
  local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], start, 'COUNT', 1)
  local entry = reply[2][1]
  if entry and entry[2] then return entry end
  start = reply[1]
until start == '0-0'
return false
