-- Enqueue a job again if its queue entry is lost.
-- KEYS[1] jobs. ARGV: entry id or '', envelope, then, for a run that a worker executes, the entry id that it knows.
-- Returns the id of the new entry, or nil if the entry exists.
if ARGV[1] ~= '' and #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) > 0 then return false end
if ARGV[3] then return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2], 'replaces', ARGV[3]) end
return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
