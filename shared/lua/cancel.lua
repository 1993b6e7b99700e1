-- cancel: end a job that has not ended, queued or running, at once. A running attempt loses its lease with it, so
-- nothing that it does afterwards is written, and its worker is told to stop it.
-- ARGV: id, owner, reason as JSON, keep_ms
-- → {snapshot} | nil (no such job of this owner)
local id = ARGV[1]
local r = redis.call('HMGET', JOB .. id, 'status', 'owner', 'worker', 'token', 'attempt')
if not r[1] or r[2] ~= ARGV[2] then return nil end
if not TERMINAL[r[1]] then
  if r[1] == 'running' then redis.call('PUBLISH', STOP .. r[3], id .. '\n' .. r[4]) end
  close(id, r[5], 'cancelled', '{"reason":' .. ARGV[3] .. '}', tonumber(ARGV[4]))
end
return snapshot(id)
