-- submit: accept a job. Admission, record, event 1, arq's job key and queue entry, the bell: all or nothing.
-- KEYS: lane
-- ARGV: id, body, analysis, queue, owner, max_attempts, retry, timeout_ms, delay_ms:number, node, watch, key, fingerprint,
--   queue_depth:number, owner_in_flight:number, owner_bytes:number, owner_listed:number, life_ms:number, submit_rate:number,
--   submit_burst:number, fair_window:number
-- `watch`: the record's field that names `node`; `submit_rate`: jobs a second, 0: no limit; `fair_window` 0: no fairness.
-- → {'accepted', at, tokens left or -1} | {'duplicate', id, status, at of its event 1, tokens} | {'conflict'}
--   | {'queue_full', n, tokens} | {'too_many', n, tokens} | {'too_much', bytes, ms until there is more room, tokens}
--   | {'rate_limited', ms until there is a token}
local lane = KEYS[1]

local function first_at(job)
  local entry = redis.call('XRANGE', LOG .. job, '1-0', '1-0')[1]
  return entry and string.match(entry[2][2], '^%d+ (%d+)') or '0'
end

if redis.call('EXISTS', JOB .. id) == 1 then return { 'accepted', first_at(id), -1 } end   -- our own call again

local tokens = -1
if submit_rate > 0 then
  local bucket = redis.call('HMGET', BUCKET .. owner, 'tokens', 'at')
  tokens = math.min(submit_burst, (bucket[1] or submit_burst) + math.max(0, now - (bucket[2] or now)) * submit_rate / 1000)
end

local key_name = KEY .. owner .. ':' .. key
if key ~= '' then
  local known = redis.call('HMGET', key_name, 'job', 'fingerprint')
  local status = known[1] and redis.call('HGET', JOB .. known[1], 'status')
  if status then
    if known[2] ~= fingerprint then return { 'conflict' } end
    return { 'duplicate', known[1], status, first_at(known[1]), tokens }
  end
end

if submit_rate > 0 and tokens < 1 then return { 'rate_limited', math.ceil((1 - tokens) * 1000 / submit_rate) } end

local depth = redis.call('ZCARD', lane)
if fair_window > 0 then depth = depth + redis.call('ZCARD', BACK .. lane) end
if depth >= queue_depth then return { 'queue_full', depth, tokens } end
local inflight = INFLIGHT .. owner
local mine = redis.call('ZCARD', inflight)
if mine >= owner_in_flight then
  redis.call('ZREMRANGEBYSCORE', inflight, '-inf', now)   -- jobs that ran out of life without an end
  mine = redis.call('ZCARD', inflight)
  if mine >= owner_in_flight then return { 'too_many', mine, tokens } end
end

local function held()
  local r = redis.call('HMGET', BYTES .. owner, 'open', 'ended')
  return (r[1] or 0) + (r[2] or 0) + #body
end
if held() > owner_bytes then
  local wait = forget_ended(owner)
  if mine == 0 then redis.call('HSET', BYTES .. owner, 'open', 0) end   -- of jobs that ran out of life without an end
  local bytes = held()
  if bytes > owner_bytes then return { 'too_much', bytes, wait, tokens } end
end

if submit_rate > 0 then
  tokens = tokens - 1
  redis.call('HSET', BUCKET .. owner, 'tokens', tokens, 'at', now)
  redis.call('PEXPIRE', BUCKET .. owner, math.ceil(submit_burst * 1000 / submit_rate) + 1000)
end

local life = life_ms + delay_ms
local keep = life + 3600000   -- the record outlives the body, so that it can still be ended
write({ id = id, [watch] = node }, 0, 'queued',
  '{"analysis":' .. cjson.encode(analysis) .. ',"queue":' .. cjson.encode(queue) .. '}')
redis.call('HSET', JOB .. id, 'analysis', analysis, 'status', 'queued', 'attempt', 0, 'max_attempts', max_attempts,
  'retry', retry, 'timeout', timeout_ms, 'owner', owner, 'queue', queue, 'lane', lane, 'created', now, 'life', life,
  'seq', 1, 'at', now, 'size', #body, watch, node)
redis.call('PEXPIRE', JOB .. id, keep)
redis.call('PEXPIRE', LOG .. id, keep)
redis.call('SET', BODY .. id, body, 'PX', life)
redis.call('ZADD', inflight, now + life, id)
outlive(inflight, life)
count_open(owner, #body)
outlive(BYTES .. owner, keep)
list_job(owner, id, keep, owner_listed)
if key ~= '' then
  redis.call('HSET', JOB .. id, 'key', key)
  redis.call('HSET', key_name, 'job', id, 'fingerprint', fingerprint)
  redis.call('PEXPIRE', key_name, keep)
end
local turn
if fair_window > 0 then
  turn = delay_ms > 0 and 'late' or front_is_full(lane, owner, fair_window) and 'back' or 'front'
  redis.call('HSET', JOB .. id, 'turn', turn)   -- a late job joins the line when it falls due
end
if turn == 'back' then
  redis.call('HSET', JOB .. id, 'back', join_back(lane, owner, id, exact))
else
  if turn == 'front' then join_front(lane, owner, id, life) end
  redis.call('ZADD', lane, exact + delay_ms, id)
end
if delay_ms < 500 then ring(queue) end
return { 'accepted', tostring(now), math.floor(tokens) }
