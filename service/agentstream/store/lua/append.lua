-- Append a batch to the replay log of each of several runs, and publish it: the common case of publish.lua.
-- KEYS: the replay logs, which have the names of their channels. ARGV, two for each: entry id, batch.
-- Returns for each 1, or 0 if the batch was not stored: there is no log, or its last id is not smaller than the entry id.
-- publish.lua then returns the reason.
local done = {}
for i = 1, #KEYS do
  local log, id, batch = KEYS[i], ARGV[2 * i - 1], ARGV[2 * i]
  done[i] = 0
  if type(redis.pcall('XADD', log, 'NOMKSTREAM', id, 'b', batch)) == 'string' then
    redis.call('PUBLISH', log, batch)
    done[i] = 1
  end
end
return done
