-- Enqueue a job again if its queue entry is lost.
-- KEYS[1] jobs. ARGV: entry id or '', envelope. If a worker executes the run, also the entry id that the worker has
-- claimed, the group, and the worker that holds the new entry or ''. Returns the id of the new entry, or nil if the entry
-- exists.
if ARGV[1] ~= '' and #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) > 0 then return false end
if not ARGV[3] then return redis.call('XADD', KEYS[1], '*', 'job', ARGV[2]) end
local id = redis.call('XADD', KEYS[1], '*', 'job', ARGV[2], 'replaces', ARGV[3])
-- Otherwise nobody could take the job over before the queue has delivered it. The group may be lost, too.
if ARGV[5] ~= '' then redis.pcall('XCLAIM', KEYS[1], ARGV[4], ARGV[5], 0, id, 'FORCE', 'JUSTID') end
return id
