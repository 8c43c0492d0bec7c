-- Remove consumers that hold no jobs and have been idle for a long time.
-- KEYS[1] jobs. ARGV: group, minimum idle time in ms.
-- Returns how many it removed. The check and the removal are one script: a job claimed between them would be lost.
local pruned = 0
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    pruned = pruned + 1
  end
end
return pruned
