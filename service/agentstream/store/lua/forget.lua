-- Remove a run from the parked runs of its queue, unless it was parked again meanwhile and so has another score.
-- KEYS[1] parked runs. ARGV: run id, smallest and largest score that it may have. Returns how many it removed.
local score = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or -1)
if score < tonumber(ARGV[2]) or score > tonumber(ARGV[3]) then return 0 end
return redis.call('ZREM', KEYS[1], ARGV[1])
