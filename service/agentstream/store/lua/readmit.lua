-- Enqueue a job again if its queue entry is lost.
-- KEYS[1] jobs. ARGV: entry id or '', envelope. Returns the id of the new entry, or nil if the entry exists.
if ARGV[1] ~= '' and #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) > 0 then return false end
return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2])
