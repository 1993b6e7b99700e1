-- snapshot: a job as it stands.
-- ARGV: id, owner
-- `owner` '*': any.
-- → {snapshot} | nil (no such job of this owner)
if owner ~= '*' and redis.call('HGET', JOB .. id, 'owner') ~= owner then return nil end
return snapshot(id)
