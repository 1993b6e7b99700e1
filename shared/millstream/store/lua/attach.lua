-- attach: from now on a node hears of a job, and here is what its log holds after the cursor. Both in one script, so
-- nothing can fall between reading what was and hearing what comes.
-- ARGV: id, owner, node, field, seq:number, at, limit:number, limit_bytes:number
-- `owner` '*': any; `field`: the record's that names the nodes to tell; `seq` and `at`: the cursor.
-- → nil (no such job of this owner) | {gap 0|1, more 0|1, snapshot, entry, …}
--   gap: the log does not hold what the cursor asks for; the entries then begin with its first.
local budget = limit_bytes
local r = redis.call('HMGET', JOB .. id, 'owner', 'status', field, 'seq', 'bytes')
if not r[2] or (owner ~= '*' and r[1] ~= owner) then return nil end

if not TERMINAL[r[2]] and node ~= '' then
  local nodes = ' ' .. (r[3] or '') .. ' '
  if not string.find(nodes, ' ' .. node .. ' ', 1, true) then
    redis.call('HSET', JOB .. id, field, (r[3] and r[3] ~= '' and r[3] .. ' ' or '') .. node)
  end
end

local log = LOG .. id
local gap = 0
if seq > 0 then
  local entry = redis.call('XRANGE', log, seq .. '-0', seq .. '-0')[1]
  if not entry or string.match(entry[2][2], '^%d+ (%d+)') ~= at then gap, seq = 1, 0 end
end

local reply = { gap, 0, snapshot(id) }
if field == 'watch_end' then
  if limit > 0 and TERMINAL[r[2]] then
    local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    if last and tonumber(string.match(last[1], '^%d+')) > seq then reply[4] = last[2][2] end
  end
  return reply
end
local mean = tonumber(r[5] or 0) / math.max(1, tonumber(r[4]))
local step = math.max(1, math.min(64, math.floor(budget / 4 / (mean + 64))))
local sent, all = 0, false
while sent < limit and budget > 0 do
  local count = math.min(step, limit - sent)
  local entries = redis.call('XRANGE', log, '(' .. seq .. '-0', '+', 'COUNT', count)
  for _, entry in ipairs(entries) do
    reply[#reply + 1] = entry[2][2]
    budget = budget - #entry[2][2]
    seq = tonumber(string.match(entry[1], '^%d+'))
  end
  sent = sent + #entries
  all = #entries < count   -- the log may hold less than its job has had: the store can lose data
  if all then break end
end
if not all and seq < tonumber(r[4]) then reply[2] = 1 end
return reply
