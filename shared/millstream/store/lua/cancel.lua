-- cancel: end a job that has not ended, at once.
-- ARGV: id, owner, reason as JSON, keep_ms
-- → {snapshot} | nil (no such job of this owner)
local id = ARGV[1]
local job = read(id, TO_CANCEL)
if not job or job.owner ~= ARGV[2] then return nil end
cancel(job, ARGV[3], tonumber(ARGV[4]))
return snapshot(id)
