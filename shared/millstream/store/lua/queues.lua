-- queues: how full lanes are.
-- KEYS: lanes
-- → {due in the lane or waiting at its back, running, delayed, age in ms of the oldest due, …}
-- What is not due runs when it has a lease; leases are looked for among the first LOOK_AT of a lane.
local LOOK_AT, PAGE = 20000, 1000
local reply = {}
for _, lane in ipairs(KEYS) do
  local oldest = redis.call('ZRANGE', lane, 0, 0, 'WITHSCORES')[2]
  local from = '(' .. string.format('%.17g', exact)
  local later, running = redis.call('ZCOUNT', lane, from, '+inf'), 0
  for offset = 0, math.min(later, LOOK_AT) - 1, PAGE do
    local leases = redis.call('ZRANGEBYSCORE', lane, from, '+inf', 'LIMIT', offset, PAGE)
    for i, id in ipairs(leases) do leases[i] = LEASE .. id end
    if #leases > 0 then running = running + redis.call('EXISTS', unpack(leases)) end
  end
  reply[#reply + 1] = redis.call('ZCOUNT', lane, '-inf', exact) + redis.call('ZCARD', BACK .. lane)
  reply[#reply + 1] = running
  reply[#reply + 1] = later - running
  reply[#reply + 1] = oldest and math.max(0, now - tonumber(oldest)) or 0
end
return reply
