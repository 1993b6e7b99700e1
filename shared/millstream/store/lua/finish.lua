-- finish: the end of a job by its owner. All or nothing, same fence as append.
-- ARGV: id, token, status ('succeeded' | 'failed'), data, keep_ms, arq's result or '', number of the attempt's events or ''
-- → 'ok' | 'lost' (not the owner, or the store has lost some of these events)
local id, token = ARGV[1], ARGV[2]
local job = read(id, { 'status', 'settled', 'attempt', 'appended', 'seq', 'watch', 'watch_end', 'lane', 'owner', 'key', 'turn', 'back' })
if job and job.settled == token then return 'ok' end   -- the same call again, after a reply that got lost
if not job or not owns(id, token) then return 'lost' end
if ARGV[7] ~= '' and job.appended ~= ARGV[7] then return 'lost' end
close(job, ARGV[3], ARGV[4], tonumber(ARGV[5]), token)
if ARGV[6] ~= '' then redis.call('SET', RESULT .. id, ARGV[6], 'PX', ARGV[5]) end
return 'ok'
