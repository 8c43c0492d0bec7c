-- Store messages for a run that is going on.
-- KEYS[1] run. ARGV: messages as JSON objects joined by commas, their number, maximum number and bytes of all messages
-- of the run, prefix of control channels, message for the run's worker.
-- Returns the number of messages that were stored before; or the status of a run that takes none now, CLOSED if its
-- agent takes no messages, FULL if there are too many; nil if there is no such run.
local status, takes, inputs, count, worker = unpack(redis.call('HMGET', KEYS[1],
  'status', 'takes_inputs', 'inputs', 'inputs_count', 'worker'))
if status ~= 'running' then return status end
if takes ~= '1' then return 'CLOSED' end
inputs, count = inputs or '', tonumber(count or 0)
if count + ARGV[2] > tonumber(ARGV[3]) or #inputs + #ARGV[1] > tonumber(ARGV[4]) then return 'FULL' end
redis.call('HSET', KEYS[1], 'inputs', inputs == '' and ARGV[1] or inputs .. ',' .. ARGV[1], 'inputs_count', count + ARGV[2])
redis.call('PUBLISH', ARGV[5] .. worker, ARGV[6])
return count
