-- expire: end the jobs of one page of a lane that waited longer than a job may live, though no worker claims them.
-- KEYS: lane
-- ARGV: offset:number, keep_ms
-- → where the next page begins; -1: that was the last
local lane = KEYS[1]
local PAGE = 500

local page = redis.call('ZRANGE', lane, offset, offset + PAGE - 1)
local bodies = {}
for i, id in ipairs(page) do bodies[i] = BODY .. id end
local stay = #page
if stay > 0 and redis.call('EXISTS', unpack(bodies)) < stay then
  for _, id in ipairs(page) do
    if redis.call('EXISTS', BODY .. id, LEASE .. id) == 0 then
      stay = stay - 1
      local job = read(id, TO_CLOSE)
      if job and not TERMINAL[job.status] then close(job, 'failed', EXPIRED, keep_ms) else redis.call('ZREM', lane, id) end
    end
  end
end
return #page < PAGE and -1 or offset + stay
