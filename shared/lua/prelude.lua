-- What the scripts share; it is put before each of them, after one local for each prefix in keys.py.
-- Times are Unix milliseconds of the server's clock: client clocks lie.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local TERMINAL = { succeeded = true, failed = true, cancelled = true }

-- Sends `payload` to the nodes in one of the record's watcher fields. A node that nobody listens for is taken off.
local function publish(id, field, nodes, payload)
  if not nodes or nodes == '' then return end
  local left = {}
  local gone = false
  for node in string.gmatch(nodes, '%S+') do
    if redis.call('PUBLISH', NODE .. node, payload) > 0 then left[#left + 1] = node else gone = true end
  end
  if gone then redis.call('HSET', JOB .. id, field, table.concat(left, ' ')) end
end

-- Writes the next event of a job: to its log, and to those who watch it. `watch` names the nodes that want every
-- event, `watch_end` those that want only the last.
local function write(id, attempt, kind, data)
  local seq = redis.call('HINCRBY', JOB .. id, 'seq', 1)
  local head = seq .. ' ' .. now .. ' ' .. attempt .. ' ' .. kind .. '\n'
  redis.call('XADD', LOG .. id, seq .. '-0', 'e', head .. data)
  redis.call('HSET', JOB .. id, 'at', now)
  local watchers = redis.call('HMGET', JOB .. id, 'watch', 'watch_end')
  local payload = head .. id .. '\n' .. data
  publish(id, 'watch', watchers[1], payload)
  if TERMINAL[kind] then publish(id, 'watch_end', watchers[2], payload) end
  return seq
end

-- The end of a job, whichever it is: its last event, the log closed, the queue and keys cleared, times to live set.
local function close(id, attempt, status, data, keep_ms)
  local record = redis.call('HMGET', JOB .. id, 'lane', 'owner', 'key')
  redis.call('HSET', JOB .. id, 'status', status, 'finished', now)
  write(id, attempt, status, data)
  if record[1] then redis.call('ZREM', record[1], id) end
  redis.call('DEL', BODY .. id, LEASE .. id, RETRY .. id)
  redis.call('ZREM', INFLIGHT .. (record[2] or ''), id)
  redis.call('PEXPIRE', JOB .. id, keep_ms)
  redis.call('PEXPIRE', LOG .. id, keep_ms)
  if record[3] then redis.call('PEXPIRE', KEY .. (record[2] or '') .. ':' .. record[3], keep_ms) end
end

-- Wakes one idle worker of a queue. The list is bounded: a worker that has been busy looks before it waits.
local function ring(queue)
  local bell = BELL .. queue
  if redis.call('LLEN', bell) < 64 then
    redis.call('LPUSH', bell, '1')
    redis.call('PEXPIRE', bell, 60000)
  end
end

-- Does `token` own the job? Once its lease has run out, been handed on or been taken away, it never does again.
local function owns(id, token)
  return redis.call('GET', LEASE .. id) == token
end

-- Did `token` end its attempt before? Then this is the same call again, after a reply that got lost.
local function settled(id, token)
  return redis.call('HGET', JOB .. id, 'settled') == token
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
