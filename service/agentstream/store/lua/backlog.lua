-- Return how many jobs of a queue are outstanding, and how many of them no worker has taken.
-- KEYS[1] jobs. ARGV: group.
-- Returns {outstanding jobs, jobs that no worker has taken, age of the oldest of these}. The age is in ms by the
-- server's clock, and 0 if there is no such job. The last two are -1 if this Redis user may not read the group.
local outstanding = redis.call('XLEN', KEYS[1])
if outstanding == 0 then return {0, 0, 0} end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then return {outstanding, -1, -1} end
local taken, last = 0, '0-0'
for _, fields in ipairs(groups) do
  local group = {}
  for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
  if group.name == ARGV[1] then taken, last = group.pending, group['last-delivered-id'] end
end
local oldest = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
if not oldest then return {outstanding, 0, 0} end
local time = redis.call('TIME')
local age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(oldest[1], '^%d+'))
return {outstanding, outstanding - taken, math.max(age, 0)}
