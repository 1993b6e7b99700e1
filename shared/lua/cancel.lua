-- cancel: end a job that has not ended, queued or running, at once. A running attempt loses its lease with it, so
-- nothing that it does afterwards is written, and its worker is told to stop it.
-- ARGV: id, owner, reason as JSON, keep_ms
-- → {snapshot} | nil (no such job of this owner)
local id = ARGV[1]
local job = read(id, { 'status', 'worker', 'token', 'attempt', 'seq', 'watch', 'watch_end', 'lane', 'owner', 'key', 'turn', 'back' })
if not job or job.owner ~= ARGV[2] then return nil end
if not TERMINAL[job.status] then
  if job.status == 'running' then redis.call('PUBLISH', STOP .. job.worker, id .. '\n' .. job.token) end
  close(job, 'cancelled', '{"reason":' .. ARGV[3] .. '}', tonumber(ARGV[4]))
end
return snapshot(id)
