-- Agree that `worker` holds a task in its attempt number `attempt`: renew the lease, or make it again after a loss.
-- A task that still waits here is charged and leaves the line. One that nobody knew is prepaid: an earlier epoch has
-- charged it, or it is settled already and a late heartbeat makes it again; neither may move the tags of this epoch.
-- ARGV: 3 task, 4 attempt, 5 worker, 6 lease_ttl_ms, 7 tenant, 8 class, 9 weight, 10 cap, 11 cost, 12 accepted_at_ms;
--       for pre-emption: 13 claimed_at_ms, 14 yieldable, 15 yields in its last hour of running, 16 cost that a yield
--       would leave.
-- Returns "renewed", "yield": renewed and asked to make way, "taken", "created", or "stale": a later attempt is known.
local task, attempt, worker, ttl_ms = ARGV[3], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local t = read(task)
local answer, state = 'renewed', 'claimed'
if t and t.attempt >= attempt then return 'stale' end
if not t then
  local class, tenant = class_of[ARGV[8]], ARGV[7]
  set_flow(class, tenant, ARGV[9], ARGV[10])
  redis.call('DEL', TASK .. task)
  redis.call('HSET', TASK .. task, 'tenant', tenant, 'class', class.name, 'arrival', arrival_of(ARGV[12]),
    'cost', ARGV[11], 'prepaid', '1')
  count(class, tenant, 0, 1)
  t, answer = {tenant = tenant}, 'created'
elseif t.state == 'waiting' then
  charge(t, false)
  leave_line(t)
  count(t.class, t.tenant, 0, 1)
  answer = 'taken'
elseif t.worker ~= worker or t.attempt ~= attempt - 1 then
  unmark(task)
  if t.worker ~= worker then take_slot_back(t) end
elseif t.state ~= 'handed_over' then
  state = t.state
end
redis.call('HSET', TASK .. task, 'attempt', attempt - 1, 'state', state, 'worker', worker, 'since_ms', ARGV[13],
  'yieldable', ARGV[14], 'num_yields', ARGV[15], 'left', ARGV[16])
give_lease(task, worker, ttl_ms)
update_idle(worker)
if answer ~= 'renewed' then refresh(t.tenant) end
local is_drained = ARGV[14] == '1' and redis.call('HGET', WORKER .. worker, 'drained') == '1'
if answer == 'renewed' and (state == 'yielding' or is_drained) then return 'yield' end
return answer
