-- requeue: the owner gives a running job back to the queue, to run again after a delay (a retry), or at once and without
-- having used up the attempt (a drain).
-- ARGV: id, token, type of the event that says so, its data, delay_ms, 1 to give the attempt back
-- → 'ok' | 'lost'
local id, token, delay, give_back = ARGV[1], ARGV[2], tonumber(ARGV[5]), ARGV[6] == '1'
local job = read(id, { 'status', 'settled', 'attempt', 'seq', 'watch', 'watch_end', 'lane', 'queue', 'created' })
if job and job.settled == token then return 'ok' end   -- the same call again, after a reply that got lost
if not job or not owns(id, token) then return 'lost' end
write(job, job.attempt, ARGV[3], ARGV[4])
redis.call('HSET', JOB .. id, 'status', 'queued', 'settled', token, 'seq', job.seq, 'at', now,
  'attempt', give_back and job.attempt - 1 or job.attempt)
redis.call('DEL', LEASE .. id)
redis.call('ZADD', job.lane, give_back and job.created or now + delay, id)   -- what has waited once goes first
if delay < 500 then ring(job.queue) end
return 'ok'
