-- Tell how far a run has come, without its batches. KEYS[1] log. Returns the last entry's id, attempt-seq, or nil.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return info[i + 1] end
end
