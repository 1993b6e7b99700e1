-- cancel: end a job that has not ended, at once.
-- ARGV: id, owner, reason, keep_ms
-- `reason` is JSON.
-- → {snapshot} | nil (no such job of this owner)
local job = read(id, TO_CLOSE)
if not job or job.owner ~= owner then return nil end
cancel(job, reason, keep_ms)
return snapshot(id)
