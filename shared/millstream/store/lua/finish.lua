-- finish: the end of a job by its owner. All or nothing, same fence as append.
-- ARGV: id, token, status, data, keep_ms, result_for_arq, events
-- `result_for_arq`: '' where no stock arq client asks; `events`: how many the attempt has written, '' where that is not known.
-- → 'ok' | 'lost' (not the owner, or the store has lost some of these events)
local job = read(id, with(TO_CLOSE, 'settled', 'appended'))
if job and job.settled == token then return 'ok' end   -- the same call again, after a reply that got lost
if not job or not owns(id, token) then return 'lost' end
if events ~= '' and job.appended ~= events then return 'lost' end
close(job, status, data, keep_ms, token, result_for_arq)
return 'ok'
