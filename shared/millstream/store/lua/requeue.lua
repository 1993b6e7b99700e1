-- requeue: the owner gives a running job back to the queue, to run again after a delay (a retry), or at once and without
-- having used up the attempt (a drain). A job that is handed back again and again may be what ends its workers: from a
-- number on, each time uses up its attempt.
-- ARGV: id, token, event, data, delay_ms:number, give_back, hand_backs:number, keep_ms
-- `event` and `data`: the type and data of the event that says so; `give_back`: '1' to give the attempt back.
-- → 'ok' | 'lost'
local job = read(id, with(TO_CLOSE, 'settled', 'queue', 'created', 'max_attempts', 'handed_back'))
if job and job.settled == token then return 'ok' end   -- the same call again, after a reply that got lost
if not job or not owns(id, token) then return 'lost' end
write(job, job.attempt, event, data)
local attempt, handed_back = tonumber(job.attempt), tonumber(job.handed_back or 0)
if give_back == '1' then
  handed_back = handed_back + 1
  if handed_back <= hand_backs then
    attempt = attempt - 1
  elseif attempt >= tonumber(job.max_attempts) then
    local ending = '{"error":{"code":"attempts_exhausted","message":"The job was handed back ' .. handed_back
      .. ' times by workers that stopped while it ran."}}'
    close(job, 'failed', ending, keep_ms, token, job.adopted and arq_result(job, ending))
    return 'ok'
  end
end
redis.call('HSET', JOB .. id, 'status', 'queued', 'settled', token, 'seq', job.seq, 'at', now, 'attempt', attempt,
  'handed_back', handed_back)
redis.call('DEL', LEASE .. id)
redis.call('ZADD', job.lane, give_back == '1' and job.created or now + delay_ms, id)   -- what has waited once goes first
if delay_ms < 500 then ring(job.queue) end
return 'ok'
