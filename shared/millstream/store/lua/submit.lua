-- submit: accept a job. Admission, record, event 1, arq's job key and queue entry, the bell: all or nothing.
-- KEYS: lane. ARGV: id, body, analysis, queue, owner, max_attempts, retry, timeout_ms, delay_ms, node, watch field,
-- key, fingerprint, depth limit, owner's in-flight limit, ttl_ms, owner's rate (jobs/s, 0: no limit) and burst (jobs),
-- owner's window in the lane (0: no fairness)
-- → {'accepted', at, tokens left or -1} | {'duplicate', id, status, at of its event 1, tokens} | {'conflict'}
--   | {'queue_full', n, tokens} | {'too_many', n, tokens} | {'rate_limited', ms until there is a token}
local lane = KEYS[1]
local id, body, analysis, queue, owner = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local node, watch, key, fingerprint, ttl = ARGV[10], ARGV[11], ARGV[12], ARGV[13], tonumber(ARGV[16])
local delay = tonumber(ARGV[9])
local rate, burst, window = tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19])

local function first_at(job)
  local entry = redis.call('XRANGE', LOG .. job, '1-0', '1-0')[1]
  return entry and string.match(entry[2][2], '^%d+ (%d+)') or '0'
end

if redis.call('EXISTS', JOB .. id) == 1 then return { 'accepted', first_at(id), -1 } end   -- our own call again

local tokens = -1
if rate > 0 then
  local bucket = redis.call('HMGET', BUCKET .. owner, 'tokens', 'at')
  tokens = math.min(burst, (bucket[1] or burst) + math.max(0, now - (bucket[2] or now)) * rate / 1000)
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

if rate > 0 and tokens < 1 then return { 'rate_limited', math.ceil((1 - tokens) * 1000 / rate) } end

local depth = redis.call('ZCARD', lane)
if window > 0 then depth = depth + redis.call('ZCARD', BACK .. lane) end
if depth >= tonumber(ARGV[14]) then return { 'queue_full', depth, tokens } end
local inflight = INFLIGHT .. owner
local mine = redis.call('ZCARD', inflight)
if mine >= tonumber(ARGV[15]) then
  redis.call('ZREMRANGEBYSCORE', inflight, '-inf', now)   -- jobs that ran out of life without an end
  mine = redis.call('ZCARD', inflight)
  if mine >= tonumber(ARGV[15]) then return { 'too_many', mine, tokens } end
end

if rate > 0 then
  tokens = tokens - 1
  redis.call('HSET', BUCKET .. owner, 'tokens', tokens, 'at', now)
  redis.call('PEXPIRE', BUCKET .. owner, math.ceil(burst * 1000 / rate) + 1000)
end

local life = ttl + delay
local keep = life + 3600000   -- the record outlives the body, so that its end can still be told
write({ id = id, [watch] = node }, 0, 'queued',
  '{"analysis":' .. cjson.encode(analysis) .. ',"queue":' .. cjson.encode(queue) .. '}')
redis.call('HSET', JOB .. id, 'analysis', analysis, 'status', 'queued', 'attempt', 0, 'max_attempts', ARGV[6],
  'retry', ARGV[7], 'timeout', ARGV[8], 'owner', owner, 'queue', queue, 'lane', lane, 'created', now, 'life', life,
  'seq', 1, 'at', now, watch, node)
redis.call('PEXPIRE', JOB .. id, keep)
redis.call('PEXPIRE', LOG .. id, keep)
redis.call('SET', BODY .. id, body, 'PX', life)
redis.call('ZADD', inflight, now + life, id)
local index = JOBS .. owner
redis.call('ZADD', index, now, id)
if mine % 64 == 0 then   -- now and then is enough
  redis.call('PEXPIRE', inflight, 2 * life)
  redis.call('PEXPIRE', index, 2 * keep)
  redis.call('ZREMRANGEBYSCORE', index, '-inf', now - 2 * keep)
  redis.call('ZREMRANGEBYRANK', index, 0, -10001)
end
if key ~= '' then
  redis.call('HSET', JOB .. id, 'key', key)
  redis.call('HSET', key_name, 'job', id, 'fingerprint', fingerprint)
  redis.call('PEXPIRE', key_name, keep)
end
local turn
if window > 0 then
  turn = delay > 0 and 'late' or front_is_full(lane, owner, window) and 'back' or 'front'
  redis.call('HSET', JOB .. id, 'turn', turn)   -- a late job joins the line when it falls due
end
if turn == 'back' then
  redis.call('HSET', JOB .. id, 'back', join_back(lane, owner, id, exact))
else
  if turn == 'front' then join_front(lane, owner, id, life) end
  redis.call('ZADD', lane, exact + delay, id)
end
if delay < 500 then ring(queue) end
return { 'accepted', tostring(now), math.floor(tokens) }
