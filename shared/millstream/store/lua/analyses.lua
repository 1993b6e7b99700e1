-- analyses: what workers have advertised, without those whose workers have been gone for too long.
-- → {JSON, …}
if forget_analyses() > 0 then redis.call('PUBLISH', CATALOG, '') end
return redis.call('HVALS', ANALYSES)
