-- Forget consumers of workers that are long dead and hold nothing. KEYS[1] jobs. ARGV: group, least idle ms.
-- Returns how many. One script, as deleting a consumer that has just got a job would lose the job.
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
