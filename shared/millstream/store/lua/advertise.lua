-- advertise: a worker says which analyses it knows; they are kept for as long as a job may wait for such a worker.
-- ARGV: again, life_ms:number, analyses... (name, JSON, name, JSON, …)
-- `again`: '1' for a worker that has said so before: what another worker has said of them since is not changed.
-- → how many of them are new or have changed
local changed = 0
for i = analyses, #ARGV, 2 do
  local known = redis.call('HGET', ANALYSES, ARGV[i])
  if not known or (again ~= '1' and known ~= ARGV[i + 1]) then
    redis.call('HSET', ANALYSES, ARGV[i], ARGV[i + 1])
    changed = changed + 1
  end
  redis.call('ZADD', KNOWN, now + life_ms, ARGV[i])
end
if redis.call('HLEN', ANALYSES) > redis.call('ZCARD', KNOWN) then   -- a worker of an earlier version wrote some
  for _, name in ipairs(redis.call('HKEYS', ANALYSES)) do redis.call('ZADD', KNOWN, 'NX', now + life_ms, name) end
end
redis.call('PEXPIRE', ANALYSES, life_ms)
redis.call('PEXPIRE', KNOWN, life_ms)
if changed + forget_analyses() > 0 then redis.call('PUBLISH', CATALOG, '') end
return changed
