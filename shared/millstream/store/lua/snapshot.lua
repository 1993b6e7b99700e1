-- snapshot: a job as it stands. ARGV: id, owner ('*': any) → {snapshot} | nil (no such job of this owner)
if ARGV[2] ~= '*' and redis.call('HGET', JOB .. ARGV[1], 'owner') ~= ARGV[2] then return nil end
return snapshot(ARGV[1])
