-- append: events of a running attempt. Refused unless the token owns the job. The worker numbers its events within the
-- attempt from 1, so that what is sent again after a lost reply is written once.
-- ARGV: id, token, number:number, log_events:number, log_bytes:number, owner_bytes:number, events... (type, data, type, data, …)
-- `number` is that of the first event.
-- → 'ok' | 'lost' (not the owner, or the store has lost what came before) | 'full' (a limit of the log, or of what the owner's
-- unfinished jobs hold, is reached; nothing of this call was written)
if not owns(id, token) then return 'lost' end
local job = read(id, { 'status', 'attempt', 'appended', 'seq', 'bytes', 'watch', 'watch_end', 'owner' })
if not job then return 'lost' end
local appended, before, progress = tonumber(job.appended), tonumber(job.bytes or 0), nil
local bytes = before
if number > appended + 1 then return 'lost' end
local first = math.max(events, events + 2 * (appended + 1 - number))   -- what was written before is passed over
for i = first + 1, #ARGV, 2 do bytes = bytes + #ARGV[i] end
local open = count_open(job.owner, bytes - before)
if job.seq + (#ARGV - first + 1) / 2 > log_events or bytes > log_bytes or open > owner_bytes then
  count_open(job.owner, before - bytes)
  redis.call('HSET', JOB .. id, 'full', 1)
  return 'full'
end
for i = first, #ARGV, 2 do
  write(job, job.attempt, ARGV[i], ARGV[i + 1])
  if ARGV[i] == 'progress' then progress = ARGV[i + 1] end
end
appended = math.max(appended, number - 1 + (#ARGV - events + 1) / 2)
redis.call('HSET', JOB .. id, 'seq', job.seq, 'at', now, 'appended', appended, 'bytes', bytes,
  unpack(progress and { 'progress', progress } or {}))
return 'ok'
