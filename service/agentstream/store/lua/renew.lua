-- Renew the leases that a worker still holds.
-- KEYS[1] jobs. ARGV: group, consumer, entry ids.
-- Returns for each entry 1 (renewed), 0 (another worker holds it), -1 (no worker holds it: the broker has lost the
-- claim) or -2 (the broker has lost the entry).
local renewed = {}
for i = 3, #ARGV do
  local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if held.err or #held == 0 then
    renewed[#renewed + 1] = #redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i]) > 0 and -1 or -2
  elseif held[1][2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    renewed[#renewed + 1] = 1
  else
    renewed[#renewed + 1] = 0
  end
end
return renewed
