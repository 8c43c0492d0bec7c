-- Append a batch to the replay log of each of several runs, and publish it: the common case of publish.lua.
-- KEYS: the replay logs, which have the names of their channels. ARGV, three for each: entry id, batch, and the id that
-- the last entry must have or '' (not checked).
-- Returns for each 1, or 0 if the batch was not stored: there is no log, its last entry is another one, or its last id
-- is not smaller than the entry id. publish.lua then returns the reason.
local done = {}
for i = 1, #KEYS do
  local log, id, batch, last = KEYS[i], ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  local follows = true
  if last ~= '' then
    local entry = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    follows = entry and entry[1] == last
  end
  done[i] = 0
  if follows and type(redis.pcall('XADD', log, 'NOMKSTREAM', id, 'b', batch)) == 'string' then
    redis.call('PUBLISH', log, batch)
    done[i] = 1
  end
end
return done
