-- List the runs of a queue, the oldest first.
-- KEYS[1] jobs. ARGV: maximum of runs.
-- Returns {server time in s, outstanding jobs of the queue, run ids}. An envelope may have megabytes. So the script
-- reads one entry at a time, looks only at the beginning of its envelope, and returns no envelope.
local runs = {}
local after = '-'
while #runs < tonumber(ARGV[1]) do
  local entry = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1)[1]
  if not entry then break end
  after = '(' .. entry[1]
  runs[#runs + 1] = string.match(string.sub(entry[2][2], 1, 200), '"run_id":"(chatcmpl%-%x+)"') or ''
end
return {redis.call('TIME')[1], redis.call('XLEN', KEYS[1]), runs}
