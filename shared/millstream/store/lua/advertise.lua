-- advertise: a worker says which analyses it knows.
-- ARGV: analyses... (name, JSON, name, JSON, …)
-- → how many of them are new or have changed
local changed = 0
for i = analyses, #ARGV, 2 do
  if redis.call('HGET', ANALYSES, ARGV[i]) ~= ARGV[i + 1] then
    redis.call('HSET', ANALYSES, ARGV[i], ARGV[i + 1])
    changed = changed + 1
  end
end
if changed > 0 then redis.call('PUBLISH', CATALOG, '') end
return changed
