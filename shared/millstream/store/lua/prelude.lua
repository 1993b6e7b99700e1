-- What the scripts share; it is put before each of them, after one local for each prefix in keys.py and TERMINAL, the set of
-- terminal statuses (which are types of events, too).
-- Times are Unix milliseconds of the server's clock: client clocks lie.
-- What a job costs the store is, nearly, the number of redis.call's: a script reads a record once and writes it once.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local exact = clock[1] * 1000 + clock[2] / 1000   -- with microseconds: many jobs come in one millisecond, and keep their order

local EXPIRED = '{"error":{"code":"expired","message":"The job waited longer than a job may live."}}'
local ABORTED = '"Aborted by an arq client."'

-- The named fields of a job's record, as a table with its id; nil when there is no such job. 'status' must be the first.
local function read(id, fields)
  local values = redis.call('HMGET', JOB .. id, unpack(fields))
  if not values[1] then return nil end
  local job = { id = id }
  for i, field in ipairs(fields) do job[field] = values[i] or nil end
  return job
end

-- A list of fields with more of them.
local function with(fields, ...)
  local more = { unpack(fields) }
  for _, field in ipairs({ ... }) do more[#more + 1] = field end
  return more
end

-- Sends `payload` to the nodes in one of the record's watcher fields. A node without a listener is removed.
local function publish(job, field, payload)
  local nodes = job[field]
  if not nodes or nodes == '' then return end
  local left = {}
  local gone = false
  for node in string.gmatch(nodes, '%S+') do
    if redis.call('PUBLISH', NODE .. node, payload) > 0 then left[#left + 1] = node else gone = true end
  end
  if gone then
    job[field] = table.concat(left, ' ')
    redis.call('HSET', JOB .. job.id, field, job[field])
  end
end

-- Writes the next event of a job, to its log and to those who watch it: `watch` names the nodes that want every event,
-- `watch_end` those that want only the last. Needs these two and `seq` of the record, and counts `seq` up; to save it,
-- and `at` = now, is the caller's part, with whatever else it changes.
local function write(job, attempt, kind, data)
  job.seq = (job.seq or 0) + 1
  local head = job.seq .. ' ' .. now .. ' ' .. attempt .. ' ' .. kind .. '\n'
  redis.call('XADD', LOG .. job.id, job.seq .. '-0', 'e', head .. data)
  local payload = head .. job.id .. '\n' .. data
  publish(job, 'watch', payload)
  if TERMINAL[kind] then publish(job, 'watch_end', payload) end
end

-- Wakes one idle worker of a queue, for what is due before it would poll by itself (engine.py, IDLE_POLL_S). One entry is
-- enough: while it stands no worker is waiting, and the worker that takes it rings again if it has no slot left for all
-- that is due (claim).
local function ring(queue)
  if redis.call('LLEN', BELL .. queue) == 0 then redis.call('LPUSH', BELL .. queue, '1') end
end

-- A key of several jobs lives at least as long as the one that was added just now.
local function outlive(key, ms)
  if redis.call('PTTL', key) < ms then redis.call('PEXPIRE', key, 2 * ms) end
end

-- Puts a job on its owner's list, which holds so many. The oldest goes when nothing is left of it: one for each that
-- comes, so that the list does not outgrow what it lists.
local function list_job(owner, id, keep, owner_listed)
  local index = JOBS .. owner
  redis.call('ZADD', index, now, id)
  outlive(index, keep)
  redis.call('ZREMRANGEBYRANK', index, 0, -owner_listed - 1)
  local oldest = redis.call('ZRANGE', index, 0, 0)[1]
  if redis.call('EXISTS', JOB .. oldest) == 0 then redis.call('ZREM', index, oldest) end
end

-- What an owner's jobs hold, in bytes of bodies and of data of events. In `ms:bytes:<owner>`, `open` counts those that have
-- not ended; `ended` the others, and is the sum of fields that are named by a time (ms) after which none of its jobs is kept.

local function count_open(owner, bytes)
  return redis.call('HINCRBY', BYTES .. owner, 'open', bytes)
end

-- Takes off what is not kept any more. → ms until more is
local function forget_ended(owner)
  local held, wait = BYTES .. owner, -1
  local fields = redis.call('HGETALL', held)
  for i = 1, #fields, 2 do
    local left = (tonumber(fields[i]) or now) - now   -- those that are no times are not looked at
    if left < 0 then
      redis.call('HDEL', held, fields[i])
      redis.call('HINCRBY', held, 'ended', -fields[i + 1])
    elseif left > 0 and (wait < 0 or left < wait) then
      wait = left
    end
  end
  return wait
end

local function count_ended(owner, open, left, keep_ms)
  local held, step = BYTES .. owner, math.ceil(keep_ms / 16)
  if count_open(owner, -open) < 0 then redis.call('HSET', held, 'open', 0) end   -- the count was lost meanwhile
  redis.call('HINCRBY', held, 'ended', left)
  local gone = string.format('%.0f', math.ceil((now + keep_ms) / step) * step)
  if redis.call('HINCRBY', held, gone, left) == left then   -- the first that goes then
    outlive(held, 2 * keep_ms)
    forget_ended(owner)
  end
end

-- Fairness between owners. Of each, only so many jobs wait in a lane (the front); the rest wait at the back, in their
-- order, and one moves up when one of the front leaves. So an owner that floods a queue stands before the others with a
-- few jobs only. A record's `turn` says where a waiting job is: 'front', 'back', or nothing when it does not count.

local function front_is_full(lane, owner, window)
  local front = FRONT .. lane .. ':' .. owner
  if redis.call('ZCARD', front) < window then return false end
  redis.call('ZREMRANGEBYSCORE', front, '-inf', now)   -- jobs that ran out of life without an end
  return redis.call('ZCARD', front) >= window
end

local function join_front(lane, owner, id, life)
  local front = FRONT .. lane .. ':' .. owner
  redis.call('ZADD', front, now + life, id)
  outlive(front, life + 0)
end

-- A member of the back sorts by owner, then by the time since which it is due.
local function join_back(lane, owner, id, due)
  local member = string.format('%s\n%018.0f\n%s', owner, due * 1000, id)
  redis.call('ZADD', BACK .. lane, 0, member)
  return member
end

local moved = 0

-- A job of the front or the back stops waiting; from the back, the owner's next moves up.
local function leave_line(job)
  if job.turn == 'back' then redis.call('ZREM', BACK .. job.lane, job.back) end
  if job.turn ~= 'front' then return end
  redis.call('ZREM', FRONT .. job.lane .. ':' .. job.owner, job.id)
  local back = BACK .. job.lane
  local id, life
  repeat   -- those that ran out of life are passed over
    local member = redis.call('ZRANGEBYLEX', back, '[' .. job.owner .. '\n', '(' .. job.owner .. '\n\255', 'LIMIT', 0, 1)[1]
    if not member then return end
    redis.call('ZREM', back, member)
    id = string.match(member, '^[^\n]*\n%d+\n(.*)$')
    life = redis.call('HGET', JOB .. id, 'life')
  until life
  redis.call('HSET', JOB .. id, 'turn', 'front')
  join_front(job.lane, job.owner, id, life)
  redis.call('ZADD', job.lane, exact + moved, id)
  moved = moved + 0.001
end

-- A stock arq client polls for a result: how its job ended, in words, in the codec of its body. Where a worker of ours
-- writes the end, it brings the result with it (worker/millstream_worker/body.py): Lua would not keep every value of one.
-- nil when the codec is pickle. It must not raise: half an end would be written.
local function arq_result(job, data)
  local name, arq_queue = string.match(job.adopted, '^(%S+) (.*)$')
  local codec = ({ json = cjson, msgpack = { decode = cmsgpack.unpack, encode = cmsgpack.pack } })[name]
  if not codec then return nil end
  local readable, result = pcall(codec.decode, redis.call('GET', BODY .. job.id) or '')
  if not readable or type(result) ~= 'table' then   -- it ran out of life, or holds what Lua has no type for
    local r = redis.call('HMGET', JOB .. job.id, 'analysis', 'created')
    result = { f = r[1], a = {}, k = {}, et = tonumber(r[2]) }
  end
  local ok, written = pcall(function()
    local ending = cjson.decode(data)
    local reason = type(ending.reason) == 'string' and ': ' .. ending.reason or '.'
    result.r = ending.error and ending.error.message or 'The job was cancelled' .. reason
    result.s, result.t, result.st, result.ft, result.q, result.id = false, job.attempt + 0, now, now, arq_queue, job.id
    return codec.encode(result)
  end)
  return ok and written
end

-- The end of a job, whichever it is: its last event (of a log that overran only this is left), the log closed, the queue and keys cleared, times to live set.
-- Needs TO_CLOSE of the record. `settled`: the token of the attempt that ends it; it brings the result for stock arq
-- clients with it ('' where none asks).
local TO_CLOSE = { 'status', 'attempt', 'seq', 'watch', 'watch_end', 'lane', 'owner', 'key', 'turn', 'back', 'adopted',
  'worker', 'token', 'full', 'size', 'bytes' }
local function close(job, status, data, keep_ms, settled, result)
  local logged = job.bytes or 0
  local open = (job.size or 0) + logged
  if job.full and status ~= 'succeeded' then
    redis.call('UNLINK', LOG .. job.id)
    logged = 0
  end
  count_ended(job.owner, open, logged + #data, keep_ms)
  write(job, job.attempt, status, data)
  if not settled then result = job.adopted and arq_result(job, data) end
  if result and result ~= '' then redis.call('SET', RESULT .. job.id, result, 'PX', keep_ms) end
  redis.call('HSET', JOB .. job.id, 'status', status, 'finished', now, 'seq', job.seq, 'at', now, 'settled', settled or '')
  redis.call('ZREM', job.lane, job.id)
  if job.adopted then redis.call('ZREM', string.match(job.adopted, ' (.*)$') or QUEUE, job.id) end
  if job.turn then leave_line(job) end
  redis.call('DEL', BODY .. job.id, LEASE .. job.id, RETRY .. job.id)
  redis.call('ZREM', INFLIGHT .. job.owner, job.id)
  redis.call('PEXPIRE', JOB .. job.id, keep_ms)
  redis.call('PEXPIRE', LOG .. job.id, keep_ms)
  redis.call('PEXPIRE', JOBS .. job.owner, keep_ms, 'GT')
  if job.key then redis.call('PEXPIRE', KEY .. job.owner .. ':' .. job.key, keep_ms) end
end

-- Ends a job that has not ended, queued or running, at once. A running attempt loses its lease with it, so nothing that
-- it does afterwards is written, and its worker is told to stop it. Needs TO_CLOSE of the record.
local function cancel(job, reason, keep_ms)
  if TERMINAL[job.status] then return end
  if job.status == 'running' then redis.call('PUBLISH', STOP .. job.worker, job.id .. '\n' .. job.token) end
  close(job, 'cancelled', '{"reason":' .. reason .. '}', keep_ms)
end

-- Does `token` own the job? Once its lease has run out, been handed on or been taken away, it never does again.
local function owns(id, token)
  return redis.call('GET', LEASE .. id) == token
end

-- A job as it stands, in the order that jobs.read_snapshot() reads; nil when there is no such job.
local function snapshot(id)
  local f = redis.call('HMGET', JOB .. id, 'analysis', 'status', 'attempt', 'max_attempts', 'owner', 'queue',
    'created', 'started', 'finished', 'seq', 'at', 'progress')
  if not f[2] then return nil end
  f[13] = false
  if TERMINAL[f[2]] then
    local last = redis.call('XREVRANGE', LOG .. id, '+', '-', 'COUNT', 1)[1]
    if last then f[13] = string.sub(last[2][2], string.find(last[2][2], '\n', 1, true) + 1) end
  end
  return f
end

-- Removes the analyses that no worker has advertised for too long. Returns how many.
local function forget_analyses()
  local gone = redis.call('ZRANGEBYSCORE', KNOWN, '-inf', now)
  for _, name in ipairs(gone) do
    redis.call('HDEL', ANALYSES, name)
    redis.call('ZREM', KNOWN, name)
  end
  return #gone
end
