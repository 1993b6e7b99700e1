-- finish: the end of a job by its owner. All or nothing, same fence as append.
-- ARGV: id, token, status ('succeeded' | 'failed'), data, keep_ms, arq's result or ''
-- → 'ok' | 'lost'
local id, token = ARGV[1], ARGV[2]
if settled(id, token) then return 'ok' end
if not owns(id, token) then return 'lost' end
redis.call('HSET', JOB .. id, 'settled', token)
close(id, redis.call('HGET', JOB .. id, 'attempt'), ARGV[3], ARGV[4], tonumber(ARGV[5]))
if ARGV[6] ~= '' then redis.call('SET', RESULT .. id, ARGV[6], 'PX', ARGV[5]) end
return 'ok'
