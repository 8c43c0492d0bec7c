-- Renew the leases that a worker still holds.
-- KEYS[1] jobs. ARGV: group, consumer, entry ids.
-- Returns for each entry 1 (renewed), 0 (another worker holds it) or -1 (no worker holds it: the broker lost data).
local renewed = {}
for i = 3, #ARGV do
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if held.err or #held == 0 then
    renewed[#renewed + 1] = -1
  elseif held[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    renewed[#renewed + 1] = 1
  else
    renewed[#renewed + 1] = 0
  end
end
return renewed
