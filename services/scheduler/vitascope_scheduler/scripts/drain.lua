-- Say which workers get no more work, '' being all of them, those that come later included. Idempotent.
-- What they were handed and have not claimed falls due at once; what they run is asked to yield, here and by every
-- renewal of its lease. A worker that is not drained any more is eligible at once.
-- ARGV: 3 and on: the workers. Returns the hand-overs that fell due.
local wanted, is_known = {}, redis.call('SCARD', DRAINS) == #ARGV - 2
for i = 3, #ARGV do
  wanted[ARGV[i]] = true
  is_known = is_known and redis.call('SISMEMBER', DRAINS, ARGV[i]) == 1
end
if is_known then return {} end
redis.call('DEL', DRAINS)
if #ARGV > 2 then redis.call('SADD', DRAINS, unpack(ARGV, 3)) end

local let_go = {}
local function hold_up(worker)
  for _, task in ipairs(redis.call('SMEMBERS', HELD .. worker)) do
    local t = read(task)
    if t and t.state == 'handed_over' then
      redis.call('ZADD', LEASES, 'XX', exact(now_ms), task)
      let_go[#let_go + 1] = task
    elseif t and t.state == 'claimed' and redis.call('HGET', TASK .. task, 'yieldable') == '1' then
      tell(t, 'yield')
    end
  end
end

for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. exact(now_ms), '+inf')) do
  local before = redis.call('HMGET', WORKER .. worker, 'slots', 'drained')
  if before[1] then
    local is_drained = wanted[''] or wanted[worker]
    redis.call('HSET', WORKER .. worker, 'drained', is_drained and 1 or 0)
    update_idle(worker)
    if is_drained and before[2] ~= '1' then hold_up(worker) end
  end
end
return let_go
