-- jobs: an owner's jobs, newest first. ARGV: owner, status or '', analysis or '', limit, id to go on after or '',
-- limit (bytes) → {id, snapshot, …} | 'unknown' (there is no such id to go on after)
local owner, status, analysis, limit, after, budget = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local index = JOBS .. owner
local from = 0
if after ~= '' then
  local rank = redis.call('ZREVRANK', index, after)
  if not rank then return 'unknown' end
  from = rank + 1
end
local found = {}
while #found < 2 * limit and budget > 0 do
  local ids = redis.call('ZREVRANGE', index, from, from + 99)
  for _, id in ipairs(ids) do
    local job = snapshot(id)
    if job and (status == '' or job[2] == status) and (analysis == '' or job[1] == analysis) then
      found[#found + 1] = id
      found[#found + 1] = job
      budget = budget - #(job[13] or '') - 500
      if #found >= 2 * limit or budget <= 0 then break end
    end
  end
  if #ids < 100 then break end
  from = from + 100
end
return found
