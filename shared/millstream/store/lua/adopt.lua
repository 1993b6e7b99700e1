-- adopt: give what stock arq clients enqueued a record, a log and a place in a lane, where no stock worker looks. Its entry
-- stays in their queue, far in the future, until it ends: they wait for no result of a job that is not there.
-- Left for stock workers, where there are any: the jobs of functions that this worker does not know, and pickled ones.
-- KEYS: lane, the queues of stock clients
-- ARGV: queue, attempts:number, queue_depth:number, life_ms:number, keep_ms, owner_listed:number, known... (name, max_attempts or '', …)
-- `queue`: that of the lane; `attempts`: max_attempts where the analysis names none.
-- → how many were adopted
local LOOK_AT, PAGE = 1000, 100
local FAR = 1e15   -- adopted entries stand after it, by the time at which their job ought to be over
local lane = KEYS[1]
local attempts_of = {}
for i = known, #ARGV, 2 do attempts_of[ARGV[i]] = ARGV[i + 1] end

-- The function that a body names ('': it cannot be read) and the body's codec. Of msgpack as little is read as will do:
-- Lua knows neither its extension types nor its largest numbers.
local function read_function(body)
  if not body then return '', 'json' end
  local codec = string.sub(body, 1, 1) == '{' and 'json' or string.byte(body) == 0x80 and 'pickle' or 'msgpack'
  local ok, name = pcall(function()
    if codec == 'json' then return cjson.decode(body).f end
    local at, key, value = 1   -- after the byte that says how many members there are
    while at > 0 do
      at, key = cmsgpack.unpack_one(body, at)
      at, value = cmsgpack.unpack_one(body, at)
      if key == 'f' then return value end
    end
  end)
  return ok and type(name) == 'string' and name or '', codec
end

local function adopt(id, arq_queue, due, body, name, codec)
  local own = attempts_of[name] and attempts_of[name] ~= ''
  local left = redis.call('PTTL', BODY .. id)
  local life = left > 0 and left or life_ms
  local keep = math.max(life, life_ms) + 3600000
  local job = { id = id, status = 'queued', attempt = 0, adopted = codec .. ' ' .. arq_queue, lane = lane, owner = '',
    size = body and #body or 0 }
  redis.call('SET', LEASE .. id, '', 'PX', 1)   -- a stock worker that is about to take it watches this key
  redis.call('DEL', LEASE .. id, LOG .. id, JOB .. id)   -- the last two: of an ended job whose id is used again
  write(job, 0, 'queued', '{"analysis":' .. cjson.encode(name) .. ',"queue":' .. cjson.encode(queue) .. '}')
  redis.call('HSET', JOB .. id, 'analysis', name, 'status', 'queued', 'attempt', 0,
    'max_attempts', own and attempts_of[name] or attempts, 'retry', own and 1 or 0, 'timeout', 0, 'owner', '', 'queue', queue,
    'lane', lane, 'created', now, 'size', job.size, 'life', life, 'adopted', job.adopted, 'seq', 1, 'at', now)
  redis.call('PEXPIRE', JOB .. id, keep)
  redis.call('PEXPIRE', LOG .. id, keep)
  count_open('', job.size)
  outlive(BYTES, keep)
  list_job('', id, keep, owner_listed)
  redis.call('ZADD', lane, due, id)
  redis.call('ZADD', arq_queue, FAR + now + keep, id)
  if redis.call('ZREM', ABORT, id) == 1 then return cancel(job, ABORTED, keep_ms) end
  if not body then close(job, 'failed', EXPIRED, keep_ms) end
end

-- An entry that ought to be far in the future: a stock client has moved it, or its job ought to be over.
local function put_back(id, arq_queue, job)
  if job and job.adopted and not TERMINAL[job.status] then
    redis.call('ZADD', arq_queue, FAR + now + job.life, id)
  else
    redis.call('ZREM', arq_queue, id)
  end
end

local room = queue_depth - redis.call('ZCARD', lane)
local adopted = 0
for n = 2, #KEYS do
  local arq_queue = KEYS[n]
  local stock_workers = redis.call('EXISTS', arq_queue .. ':health-check') == 1
  local skipped, looked_at = 0, 0
  while room > 0 and looked_at < LOOK_AT do
    local page = redis.call('ZRANGEBYSCORE', arq_queue, '-inf', FAR, 'WITHSCORES', 'LIMIT', skipped, PAGE)
    for i = 1, #page, 2 do
      local id = page[i]
      local body = redis.call('GET', BODY .. id)
      local job = read(id, { 'status', 'adopted', 'life' })
      if job and not (body and TERMINAL[job.status]) then
        put_back(id, arq_queue, job)
      else
        local name, codec = read_function(body)
        if redis.call('EXISTS', LEASE .. id) == 1 or stock_workers and not attempts_of[name] then
          skipped = skipped + 1
        elseif room > 0 then
          adopt(id, arq_queue, page[i + 1], body, name, codec)
          adopted, room = adopted + 1, room - 1
        end
      end
    end
    looked_at = looked_at + PAGE
    if #page < 2 * PAGE then break end
    if looked_at == LOOK_AT / 2 then   -- on from anywhere: many that are left alone must not hide what comes after them
      skipped = skipped + clock[2] % math.max(1, redis.call('ZCOUNT', arq_queue, '-inf', FAR) - skipped)
    end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', arq_queue, FAR, FAR + now, 'LIMIT', 0, PAGE)) do
    put_back(id, arq_queue, read(id, { 'status', 'adopted', 'life' }))
  end
end
if adopted > 0 then ring(queue) end
return adopted
