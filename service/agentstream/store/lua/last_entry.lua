-- Return the id of the last entry of a replay log (attempt-seq), or nil; the batches are not read.
-- KEYS[1] log.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return info[i + 1] end
end
