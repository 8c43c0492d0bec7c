-- Take over one job whose lease ran out.
-- KEYS[1] jobs. ARGV: group, consumer, lease in ms, server time in ms when asked, longest delay since then in ms.
-- Returns {entry id, fields}, nil if there is none, or STALLED if the server was away since it was asked: then
-- leases look expired whose workers had no chance to renew them.
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
