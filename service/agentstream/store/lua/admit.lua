-- Enqueue a job unless the queue is full. If the run has a key here, create its hash first, as create_run.lua does.
-- KEYS[1] jobs, [2] run, if one script may have both. ARGV: maximum of outstanding jobs, envelope; for the hash of the
-- run: TTL in s, fields and values.
-- Returns the entry id; if the queue is full, {outstanding jobs, jobs removed so far or -1, server time in s}.
local outstanding = redis.call('XLEN', KEYS[1])
if outstanding < tonumber(ARGV[1]) then
  if KEYS[2] then
    local status, owner = unpack(redis.call('HMGET', KEYS[2], 'status', 'owner'))
    if not owner then
      redis.call('HSET', KEYS[2], unpack(ARGV, 4))
      if status then redis.call('HSET', KEYS[2], 'status', status) end
      redis.call('EXPIRE', KEYS[2], ARGV[3])
    end
  end
  return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
end
local removed = -1
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then removed = info[i + 1] - outstanding end
end
return {outstanding, removed, tonumber(redis.call('TIME')[1])}
