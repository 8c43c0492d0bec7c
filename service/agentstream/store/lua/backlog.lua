-- Tell how much of a queue is outstanding, and what no worker has taken yet. KEYS[1] jobs. ARGV: group.
-- Returns {outstanding jobs, jobs no worker has taken, age of the oldest of them in ms by the server's clock, 0 if there
-- is none}; -1 for both if this user may not ask for the group.
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
