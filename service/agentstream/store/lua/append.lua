-- Append a batch to the replay log of each of several runs, and publish it: the common case of publish.lua.
-- KEYS: the replay logs, which have the names of their channels. ARGV, two for each: entry id, batch.
-- Returns the number of batches if all are stored. Otherwise returns for each 1, or 0 if the batch was not stored: there
-- is no log, or its last id is not smaller than the entry id. publish.lua then returns the reason.
local keys, argv, call, pcall = KEYS, ARGV, redis.call, redis.pcall
local count = #keys
local refused
for i = 1, count do
  local log, batch = keys[i], argv[2 * i]
  if type(pcall('XADD', log, 'NOMKSTREAM', argv[2 * i - 1], 'b', batch)) == 'string' then
    call('PUBLISH', log, batch)
  else
    refused = refused or {}
    refused[i] = true
  end
end
if not refused then return count end
local stored = {}
for i = 1, count do stored[i] = refused[i] and 0 or 1 end
return stored
