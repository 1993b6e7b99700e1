-- positions: where the logs of some jobs end, to notice an event whose notice was lost.
-- ARGV: jobs... (id, id, …)
-- → {seq or -1 (no such job), status, …}
local reply = {}
for i = jobs, #ARGV do
  local r = redis.call('HMGET', JOB .. ARGV[i], 'seq', 'status')
  reply[#reply + 1] = tonumber(r[1] or -1)
  reply[#reply + 1] = r[2] or ''
end
return reply
