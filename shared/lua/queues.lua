-- queues: how full lanes are. KEYS: lanes
-- → {due in the lane or waiting at its back, in the lane but not due (running or delayed), age in ms of the oldest due, …}
local reply = {}
for _, lane in ipairs(KEYS) do
  local oldest = redis.call('ZRANGE', lane, 0, 0, 'WITHSCORES')[2]
  reply[#reply + 1] = redis.call('ZCOUNT', lane, '-inf', exact) + redis.call('ZCARD', BACK .. lane)
  reply[#reply + 1] = redis.call('ZCOUNT', lane, '(' .. string.format('%.17g', exact), '+inf')
  reply[#reply + 1] = oldest and math.max(0, now - tonumber(oldest)) or 0
end
return reply
