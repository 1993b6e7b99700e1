-- jobs: an owner's jobs, newest first.
-- ARGV: owner, status, analysis, limit:number, after, limit_bytes:number
-- `status`, `analysis`: '' for all; `after`: the id to go on after, or ''.
-- → {id, snapshot, …} | 'unknown' (there is no such id to go on after)
local budget = limit_bytes
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
      budget = budget - #(job[12] or '') - #(job[13] or '') - 500
      if #found >= 2 * limit or budget <= 0 then break end
    end
  end
  if #ids < 100 then break end
  from = from + 100
end
return found
