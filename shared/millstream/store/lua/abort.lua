-- abort: end the jobs that stock arq clients want aborted (arq's Job.abort) and that a worker of ours has claimed. What
-- is not claimed yet stays listed for the worker that claims it (claim).
-- ARGV: keep_ms
local DAY_MS = 86400000
redis.call('ZREMRANGEBYSCORE', ABORT, '-inf', now - DAY_MS)
for _, id in ipairs(redis.call('ZRANGE', ABORT, 0, 999)) do
  local job = read(id, TO_CLOSE)
  if job then cancel(job, ABORTED, keep_ms) end
  if job or redis.call('EXISTS', BODY .. id) == 0 then redis.call('ZREM', ABORT, id) end
end
