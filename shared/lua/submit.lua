-- submit: accept a job. Admission, record, event 1, arq's job key and queue entry, the bell: all or nothing.
-- KEYS: lane. ARGV: id, body, analysis, queue, owner, max_attempts, retry, timeout_ms, delay_ms, node, watch field,
-- key, fingerprint, depth limit, owner's in-flight limit, ttl_ms
-- → {'accepted', at} | {'duplicate', id, status, at of its event 1} | {'conflict'} | {'queue_full', n} | {'too_many', n}
local lane = KEYS[1]
local id, body, analysis, queue, owner = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local node, watch, key, fingerprint, ttl = ARGV[10], ARGV[11], ARGV[12], ARGV[13], tonumber(ARGV[16])
local delay = tonumber(ARGV[9])

local function first_at(job)
  local entry = redis.call('XRANGE', LOG .. job, '1-0', '1-0')[1]
  return entry and string.match(entry[2][2], '^%d+ (%d+)') or '0'
end

if redis.call('EXISTS', JOB .. id) == 1 then return { 'accepted', first_at(id) } end   -- our own call again

local key_name = KEY .. owner .. ':' .. key
if key ~= '' then
  local known = redis.call('HMGET', key_name, 'job', 'fingerprint')
  local status = known[1] and redis.call('HGET', JOB .. known[1], 'status')
  if status then
    if known[2] ~= fingerprint then return { 'conflict' } end
    return { 'duplicate', known[1], status, first_at(known[1]) }
  end
end

local depth = redis.call('ZCARD', lane)
if depth >= tonumber(ARGV[14]) then return { 'queue_full', depth } end
local inflight = INFLIGHT .. owner
local mine = redis.call('ZCARD', inflight)
if mine >= tonumber(ARGV[15]) then
  redis.call('ZREMRANGEBYSCORE', inflight, '-inf', now)   -- jobs that ran out of life without an end
  mine = redis.call('ZCARD', inflight)
  if mine >= tonumber(ARGV[15]) then return { 'too_many', mine } end
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
if mine % 64 == 0 then redis.call('PEXPIRE', inflight, 2 * life) end
if key ~= '' then
  redis.call('HSET', JOB .. id, 'key', key)
  redis.call('HSET', key_name, 'job', id, 'fingerprint', fingerprint)
  redis.call('PEXPIRE', key_name, keep)
end
redis.call('ZADD', lane, now + delay, id)
if delay == 0 then ring(queue) end
return { 'accepted', tostring(now) }
