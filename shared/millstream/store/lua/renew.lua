-- renew: a worker's heartbeat. Extends the leases that its tokens still own, and the life of what is running; says
-- what was lost.
-- ARGV: worker, lease_ms:number, heartbeat, held... (id, token, id, token, …)
-- `heartbeat` is JSON.
-- → {id that was lost, token, …}
redis.call('SET', WORKER .. worker, heartbeat, 'PX', lease_ms + 1000)
redis.call('ZADD', WORKERS, now + lease_ms + 1000, worker)
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', now)
local lost = {}
for i = held, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local r = redis.call('HMGET', JOB .. id, 'lane', 'life', 'owner', 'key')
  if r[1] and owns(id, token) then
    redis.call('PEXPIRE', LEASE .. id, lease_ms)
    redis.call('ZADD', r[1], 'XX', now + lease_ms + 1, id)   -- a moment after the lease, as in claim
    redis.call('PEXPIRE', JOB .. id, r[2] + 3600000)
    redis.call('PEXPIRE', LOG .. id, r[2] + 3600000)
    redis.call('PEXPIRE', BODY .. id, r[2])
    if r[4] then redis.call('PEXPIRE', KEY .. r[3] .. ':' .. r[4], r[2] + 3600000) end
    redis.call('ZADD', INFLIGHT .. r[3], 'XX', now + r[2], id)
    redis.call('PEXPIRE', INFLIGHT .. r[3], r[2], 'GT')
    redis.call('PEXPIRE', JOBS .. r[3], r[2] + 3600000, 'GT')
    redis.call('PEXPIRE', BYTES .. r[3], r[2] + 3600000, 'GT')
  else
    lost[#lost + 1] = id
    lost[#lost + 1] = token
  end
end
return lost
