-- detach: a node no longer wants to hear of a job.
-- ARGV: id, node
-- → 'ok'
for _, field in ipairs({ 'watch', 'watch_end' }) do
  local nodes = redis.call('HGET', JOB .. id, field)
  if nodes and string.find(' ' .. nodes .. ' ', ' ' .. node .. ' ', 1, true) then
    local left = {}
    for other in string.gmatch(nodes, '%S+') do if other ~= node then left[#left + 1] = other end end
    redis.call('HSET', JOB .. id, field, table.concat(left, ' '))
  end
end
return 'ok'
