-- jobs: an owner's jobs, newest first. At most LOOK_AT of them are looked at: the store does nothing else meanwhile.
-- ARGV: owner, status, analysis, limit:number, after, limit_bytes:number
-- `status`, `analysis`: '' for all; `after`: the id to go on after, or ''.
-- → {the id to go on after ('': that was the last), id, snapshot, …} | 'unknown' (there is no such id to go on after)
local LOOK_AT, PAGE = 500, 100
local budget = limit_bytes
local index = JOBS .. owner
local from = 0
if after ~= '' then
  local rank = redis.call('ZREVRANK', index, after)
  if not rank then return 'unknown' end
  from = rank + 1
end
local found = { '' }
for first = from, from + LOOK_AT - 1, PAGE do
  local ids = redis.call('ZREVRANGE', index, first, first + PAGE - 1)
  for _, id in ipairs(ids) do
    found[1] = id
    local r = redis.call('HMGET', JOB .. id, 'status', 'analysis')
    if r[1] and (status == '' or r[1] == status) and (analysis == '' or r[2] == analysis) then
      local job = snapshot(id)
      found[#found + 1] = id
      found[#found + 1] = job
      budget = budget - #(job[12] or '') - #(job[13] or '') - 500
      if #found > 2 * limit or budget <= 0 then return found end
    end
  end
  if #ids < PAGE then found[1] = '' break end
end
return found
