-- append: events of a running attempt. Refused unless the token owns the job. The worker numbers its events within the
-- attempt from 1, so that what is sent again after a lost reply is written once.
-- ARGV: id, token, number of the first event, log limit (events), log limit (bytes), type, data, type, data, …
-- → 'ok' | 'lost' (not the owner) | 'full' (the log's limit is reached; nothing of this call was written)
local id, token, number = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not owns(id, token) then return 'lost' end
local r = redis.call('HMGET', JOB .. id, 'attempt', 'appended', 'seq', 'bytes')
local attempt, appended, seq, bytes = r[1], tonumber(r[2]), tonumber(r[3]), tonumber(r[4] or 0)
for i = 7, #ARGV, 2 do bytes = bytes + #ARGV[i] end
if seq + (#ARGV - 5) / 2 > tonumber(ARGV[4]) or bytes > tonumber(ARGV[5]) then return 'full' end
for i = 6, #ARGV, 2 do
  if number > appended then
    write(id, attempt, ARGV[i], ARGV[i + 1])
    if ARGV[i] == 'progress' then redis.call('HSET', JOB .. id, 'progress', ARGV[i + 1]) end
    appended = number
  end
  number = number + 1
end
redis.call('HSET', JOB .. id, 'appended', appended, 'bytes', bytes)
return 'ok'
