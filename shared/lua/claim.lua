-- claim: take up to n due jobs under a lease. The queue's score is the lease: an entry falls due again by itself when
-- its worker dies, and a stock arq worker, seeing a score in the future, leaves it alone.
-- KEYS: lanes, most urgent first. ARGV: worker, lease_ms, n, known analyses as '\nname\nname\n', queue of the lanes,
-- max_attempts for adopted jobs, ttl_ms, keep_ms
-- → {ms until the next entry of these lanes falls due (-1: none), job, …}, a job being
--   {id, token, attempt, max_attempts, retry, timeout_ms, analysis, body, adopted}
local worker, lease, n, known, queue = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
local adopt_attempts, ttl, keep = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local SCAN = 200   -- entries of one lane to look past for one that can be run

-- A job that a stock arq client enqueued gets a record and a log here. Its analysis is in its body, as JSON or msgpack.
local function adopt(id, lane, body)
  local packed = string.sub(body, 1, 1) ~= '{'
  local ok, job = pcall(packed and cmsgpack.unpack or cjson.decode, body)
  local analysis = ok and type(job) == 'table' and type(job.f) == 'string' and job.f or ''
  redis.call('HSET', JOB .. id, 'analysis', analysis, 'status', 'queued', 'attempt', 0, 'max_attempts', adopt_attempts,
    'retry', 0, 'timeout', 0, 'owner', '', 'queue', queue, 'lane', lane, 'created', now, 'life', ttl, 'adopted', 1)
  write(id, 0, 'queued', '{"analysis":' .. cjson.encode(analysis) .. ',"queue":' .. cjson.encode(queue) .. '}')
  redis.call('PEXPIRE', JOB .. id, ttl)
  redis.call('PEXPIRE', LOG .. id, ttl)
end

local function fail(id, attempt, code, message)
  local error = { code = code, message = message }
  close(id, attempt, 'failed', '{"error":' .. cjson.encode(error) .. '}', keep)
end

-- → the job when it was taken; true when it must stay where it is; nil when it left the due part of the lane.
local function take(id, lane)
  if redis.call('EXISTS', LEASE .. id) == 1 then return true end   -- a stock worker runs it
  local body = redis.call('GET', BODY .. id)
  local status = redis.call('HGET', JOB .. id, 'status')
  if not status then
    if not body then redis.call('ZREM', lane, id) return nil end
    adopt(id, lane, body)
    status = 'queued'
  end
  local r = redis.call('HMGET', JOB .. id, 'analysis', 'attempt', 'max_attempts', 'retry', 'timeout', 'adopted')
  local analysis, attempt, limit = r[1], tonumber(r[2]), tonumber(r[3])
  if TERMINAL[status] then redis.call('ZREM', lane, id) return nil end
  if not body then
    fail(id, attempt, 'expired', 'The job waited longer than a job may live.')
    return nil
  end
  if analysis ~= '' and not string.find(known, '\n' .. analysis .. '\n', 1, true) then return true end
  if status == 'running' then   -- its lease ran out
    if attempt >= limit then
      fail(id, attempt, 'attempts_exhausted', 'The worker of attempt ' .. attempt .. ' of ' .. limit .. ' was lost.')
      return nil
    end
    write(id, attempt, 'retrying', '{"error":{"code":"worker_lost","message":"The worker stopped answering."},'
      .. '"delay_s":0,"attempt":' .. attempt .. '}')
  end
  attempt = attempt + 1
  local token = tostring(redis.call('HINCRBY', JOB .. id, 'token', 1))
  redis.call('SET', LEASE .. id, token, 'PX', lease)
  redis.call('ZADD', lane, now + lease, id)
  redis.call('HSET', JOB .. id, 'status', 'running', 'attempt', attempt, 'worker', worker, 'appended', 0)
  redis.call('HSETNX', JOB .. id, 'started', now)
  write(id, attempt, 'started', '{"attempt":' .. attempt .. ',"worker":' .. cjson.encode(worker) .. '}')
  return { id, token, attempt, limit, r[4], r[5], analysis, body, r[6] or '0' }
end

local taken = {}
for _, lane in ipairs(KEYS) do
  local skipped = 0
  while #taken < n and skipped < SCAN do
    local ids = redis.call('ZRANGEBYSCORE', lane, '-inf', now, 'LIMIT', skipped, n - #taken)
    if #ids == 0 then break end
    for _, id in ipairs(ids) do
      local job = take(id, lane)
      if job == true then skipped = skipped + 1 elseif job then taken[#taken + 1] = job end
    end
  end
  if skipped >= SCAN then   -- let the rest of the lane have its turn
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', lane, '-inf', now, 'LIMIT', 0, skipped)) do
      redis.call('ZADD', lane, now + 1000, id)
    end
  end
end

local wait = -1
for _, lane in ipairs(KEYS) do
  local head = redis.call('ZRANGE', lane, 0, 0, 'WITHSCORES')[2]
  if head then
    local due = math.max(0, tonumber(head) - now)
    if wait < 0 or due < wait then wait = due end
  end
end
if #taken < n then redis.call('DEL', BELL .. queue) end
table.insert(taken, 1, wait)
return taken
