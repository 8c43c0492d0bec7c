-- Create the hash of a run, unless it exists because the request was sent again.
-- KEYS[1] run. ARGV: TTL in s, then fields and values. Returns 1, or 0 if the hash exists.
-- A hash without an owner is that of a run that has begun, but whose creation a failover of Redis has lost. It gets the
-- missing fields.
local status, owner = unpack(redis.call('HMGET', KEYS[1], 'status', 'owner'))
if owner then return 0 end
for i = 2, #ARGV, 2 do
  if ARGV[i] ~= 'status' or not status then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
