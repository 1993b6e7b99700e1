-- requeue: the owner gives a running job back to the queue, to run again after a delay (a retry), or at once and without
-- having used up the attempt (a drain).
-- ARGV: id, token, type of the event that says so, its data, delay_ms, 1 to give the attempt back
-- → 'ok' | 'lost'
local id, token, delay = ARGV[1], ARGV[2], tonumber(ARGV[5])
if settled(id, token) then return 'ok' end
if not owns(id, token) then return 'lost' end
local r = redis.call('HMGET', JOB .. id, 'attempt', 'lane', 'queue', 'created')
local due = now + delay
write(id, r[1], ARGV[3], ARGV[4])
redis.call('HSET', JOB .. id, 'status', 'queued', 'settled', token)
if ARGV[6] == '1' then
  redis.call('HINCRBY', JOB .. id, 'attempt', -1)
  due = r[4]   -- it has waited once: to the head of the line
end
redis.call('DEL', LEASE .. id)
redis.call('ZADD', r[2], due, id)
if delay == 0 then ring(r[3]) end
return 'ok'
