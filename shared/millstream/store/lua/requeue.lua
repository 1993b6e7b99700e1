-- requeue: the owner gives a running job back to the queue, to run again after a delay (a retry), or at once and without
-- having used up the attempt (a drain).
-- ARGV: id, token, event, data, delay_ms:number, give_back
-- `event` and `data`: the type and data of the event that says so; `give_back`: '1' to give the attempt back.
-- → 'ok' | 'lost'
local job = read(id, { 'status', 'settled', 'attempt', 'seq', 'watch', 'watch_end', 'lane', 'queue', 'created' })
if job and job.settled == token then return 'ok' end   -- the same call again, after a reply that got lost
if not job or not owns(id, token) then return 'lost' end
write(job, job.attempt, event, data)
redis.call('HSET', JOB .. id, 'status', 'queued', 'settled', token, 'seq', job.seq, 'at', now,
  'attempt', give_back == '1' and job.attempt - 1 or job.attempt)
redis.call('DEL', LEASE .. id)
redis.call('ZADD', job.lane, give_back == '1' and job.created or now + delay_ms, id)   -- what has waited once goes first
if delay_ms < 500 then ring(job.queue) end
return 'ok'
