-- Append a batch to each of several runs' replay logs, and publish it: the common case of publish.lua, many at once.
-- KEYS logs and channels. ARGV, three for each: entry id, batch, id of the entry that must be the last one or ''.
-- Returns for each 1, or 0 if nothing was done (no such log, an id not beyond its last one): publish.lua tells why.
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
