-- claim: take up to n due jobs under a lease. The score in a lane is the lease: an entry falls due again by itself when
-- its worker dies.
-- KEYS: lanes, most urgent first
-- ARGV: worker, lease_ms:number, slots:number, known, queue, keep_ms, fair_window:number
-- `known`: analyses as '\nname\nname\n'; `queue`: that of the lanes.
-- → {ms until the next entry of these lanes falls due (-1: not known), job, …}, a job being
--   {id, token, attempt, max_attempts, retry, timeout_ms, analysis, body, adopted}
local TO_CLAIM = with(TO_CLOSE, 'analysis', 'max_attempts', 'retry', 'timeout', 'started')
local SCAN = 200   -- entries of one lane to look past for one that can be run

-- Delayed jobs that are due join the line, all that are met before any is taken: one by one they would find the front
-- empty each time, and a flood of them would stand before everybody.
local function join_line(lane)
  local page = redis.call('ZRANGEBYSCORE', lane, '-inf', exact, 'WITHSCORES', 'LIMIT', 0, SCAN)
  for i = 1, #page, 2 do
    local id = page[i]
    local job = read(id, { 'turn', 'owner', 'life' })
    if job and job.turn == 'late' then
      if front_is_full(lane, job.owner, fair_window) then
        redis.call('HSET', JOB .. id, 'turn', 'back', 'back', join_back(lane, job.owner, id, page[i + 1]))
        redis.call('ZREM', lane, id)
      else
        redis.call('HSET', JOB .. id, 'turn', 'front')
        join_front(lane, job.owner, id, job.life)
      end
    end
  end
end

local moved_up = false

-- → the job when it was taken; true when it must stay where it is; nil when it left the due part of the lane; false when
-- the lane has to be looked at again.
local function take(id, lane)
  local body = redis.call('GET', BODY .. id)
  local job = read(id, TO_CLAIM)
  if not job or TERMINAL[job.status] then redis.call('ZREM', lane, id) return nil end
  local limit = tonumber(job.max_attempts)
  if not body then return close(job, 'failed', EXPIRED, keep_ms) end
  if job.analysis ~= '' and not string.find(known, '\n' .. job.analysis .. '\n', 1, true) then
    if job.turn == 'front' then   -- it waits for another worker, and must not hold up its owner's other jobs
      leave_line(job)
      redis.call('HSET', JOB .. id, 'turn', '')
      moved_up = true
    end
    return true
  end
  if job.turn == 'late' then join_line(lane) return false end
  local lost = job.status == 'running'   -- its lease ran out
  if lost and tonumber(job.attempt) >= limit then
    return close(job, 'failed', '{"error":{"code":"attempts_exhausted","message":"The worker of attempt ' .. job.attempt
      .. ' of ' .. limit .. ' was lost."}}', keep_ms)
  end
  -- The time keeps tokens apart when the store has come back with older data, in which the count is lower.
  local token = string.match(job.token or '0', '^%d+') + 1 .. '-' .. now
  if not redis.call('SET', LEASE .. id, token, 'NX', 'PX', lease_ms) then return true end   -- a stock worker has it
  if lost then
    write(job, job.attempt, 'retrying', '{"error":{"code":"worker_lost","message":"The worker stopped answering."},'
      .. '"delay_s":0,"attempt":' .. job.attempt .. '}')
  end
  local attempt = job.attempt + 1
  redis.call('ZADD', lane, now + lease_ms + 1, id)   -- a moment after the lease has run out
  if job.turn then leave_line(job) end
  write(job, attempt, 'started', '{"attempt":' .. attempt .. ',"worker":' .. cjson.encode(worker) .. '}')
  redis.call('HSET', JOB .. id, 'status', 'running', 'attempt', attempt, 'worker', worker, 'appended', 0, 'token', token,
    'started', job.started or now, 'seq', job.seq, 'at', now, unpack(job.turn and { 'turn', '' } or {}))
  return { id, token, attempt, limit, job.retry, job.timeout, job.analysis, body, job.adopted or '' }
end

local taken = {}
local wait = -1
for _, lane in ipairs(KEYS) do
  local skipped = 0
  local more = true
  while more and #taken < slots and skipped < SCAN do
    local wanted = slots - #taken
    local page = redis.call('ZRANGE', lane, skipped, skipped + wanted - 1, 'WITHSCORES')
    more = #page == 2 * wanted
    for i = 1, #page, 2 do
      local due = math.ceil(tonumber(page[i + 1]) - exact - moved)   -- what has moved up just now is due
      if due > 0 then
        if wait < 0 or due < wait then wait = due end
        more = false
        break
      end
      local job = take(page[i], lane)
      if job == false then more = true break end
      if job == true then skipped = skipped + 1 elseif job then taken[#taken + 1] = job end
    end
    more, moved_up = more or moved_up, false
  end
  if skipped >= SCAN then   -- let the rest of the lane have its turn
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', lane, '-inf', now, 'LIMIT', 0, skipped)) do
      redis.call('ZADD', lane, now + 1000, id)
    end
  end
end
if #taken < slots then
  redis.call('DEL', BELL .. queue)
else
  for _, lane in ipairs(KEYS) do
    local first = redis.call('ZRANGE', lane, 0, 0, 'WITHSCORES')[2]
    if first and tonumber(first) <= exact + moved then ring(queue) break end
  end
end
table.insert(taken, 1, wait)
return taken
