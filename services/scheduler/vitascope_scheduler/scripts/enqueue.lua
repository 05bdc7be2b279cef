-- Agree that a task is ready after `attempt` attempts: let it wait, or let it come back. Idempotent; old news is
-- ignored, that of a task that has ended meanwhile as well.
-- A task that comes back pays only for what survives: what is left is refunded here and charged by its next dispatch.
-- A hand-over that expired unclaimed (same attempt) pays nothing. It keeps its arrival.
-- One that was asked to make way leaves its slot to the task it made way for, in the same step.
-- ARGV: 3 task, 4 attempt, 5 tenant, 6 class, 7 weight, 8 cap, 9 cost that is left, 10 priority, 11 accepted_at_ms,
--       12 traceparent. Returns "queued", "returned", "unclaimed", "known", or what got its slot as `dispatch` does.
local task, attempt, cost = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[9])
local t, ended = read(task)
local answer = 'queued'
if not t then
  if ended and attempt < tonumber(ended) then return 'known' end
  redis.call('ZREM', LEASES, task)
else
  local lease = redis.call('ZSCORE', LEASES, task)
  local is_held = t.state ~= 'waiting' and lease and tonumber(lease) > now_ms
  if t.attempt > attempt or (t.attempt == attempt and (t.state == 'waiting' or is_held)) then return 'known' end
  answer = 'returned'
  if t.state == 'waiting' then
    leave_line(t)
    t.cost = t.cost - cost  -- what survives of an attempt whose every word was lost
    if attempt > t.attempt and t.cost > 0 then charge(t, false) end
  elseif t.attempt == attempt then
    land(t, t.charged)
    answer = 'unclaimed'
  else
    land(t, math.min(t.charged, cost))
  end
end
local class, tenant = class_of[ARGV[6]], ARGV[5]
local arrival = t and t.arrival or arrival_of(ARGV[11])
local has_new_cap = set_flow(class, tenant, ARGV[7], ARGV[8])
if t or ended then redis.call('DEL', TASK .. task) end
redis.call('HSET', TASK .. task, 'tenant', tenant, 'class', class.name, 'state', 'waiting', 'attempt', attempt,
  'arrival', arrival, 'cost', exact(cost), 'traceparent', ARGV[12], 'since_ms', exact(now_ms))
local waiting = {id = task, tenant = tenant, class = class, cost = cost, arrival = arrival}
local is_first = wait_in_line(waiting, ARGV[10])
if t and t.class ~= class then
  refresh(t.tenant, t.class)
  rest(t.class)
end
if t or has_new_cap or is_first then refresh(tenant, not has_new_cap and class or nil) end
return t and pass_on(t) or answer
