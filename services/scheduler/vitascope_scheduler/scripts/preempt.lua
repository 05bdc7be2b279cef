-- Ask one running task to make way, when the next pick is a task of the urgent class that has waited long enough, no
-- slot is idle, and it stays the next pick when the victim's refund is given back. The victim is the running, yieldable
-- task of the patient class with the largest start tag. One open yield per waiting task.
-- ARGV: 3 urgent class, 4 patient class, 5 wait_ms, 6 min_run_ms, 7 max_yields in the last hour of running,
--       8 lease_ttl_ms. Returns {victim, worker, the task it makes way for}, or nil.
local urgent, patient = class_of[ARGV[3]], class_of[ARGV[4]]
local wait_ms, min_run_ms, max_yields = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
if redis.call('ZCARD', urgent.heads) == 0 then return nil end
if redis.call('ZCOUNT', IDLE, '(' .. exact(now_ms), '+inf') > 0 then return nil end

-- What open yields will change: the virtual time, the tags of the two classes, and of each flow of the urgent one its
-- tag, the tasks gone from its line and the tasks in flight of its tenant.
local v, urgent_start = number(CLASSES, 'v'), start_tag(CLASSES, urgent.name)
local patient_finish, patient_floor = number(CLASSES, 'F:' .. patient.name), nil
local patient_arrival = redis.call('ZRANGE', patient.heads, 0, 0)[1]
if patient_arrival then patient_floor = number(CLASSES, 'floor:' .. patient.name) end
local flows, more_in_flight = {}, {}
for _, member in ipairs(redis.call('ZRANGE', urgent.heads, 0, 999)) do
  local tenant = string.sub(member, ARRIVAL_CHARS + 2)
  flows[#flows + 1] = {tenant = tenant, start = start_tag(urgent.flows, tenant), arrival = member, num_gone = 0}
end

-- The flow of the urgent class whose turn it is, and its task; or nil.
local function next_urgent()
  local best
  for _, flow in ipairs(flows) do
    if flow.arrival and (not best or flow.start < best.start
        or (flow.start == best.start and flow.arrival < best.arrival)) then
      best = flow
    end
  end
  if not best then return nil end
  local member = redis.call('ZRANGE', urgent.queue .. best.tenant, best.num_gone, best.num_gone)[1]
  return best, read(string.sub(member, ARRIVAL_CHARS + 2))
end

-- Let a task be gone from the urgent class: its flow shows the one after it, unless the cap of its tenant is reached.
local function take(flow, t)
  local tenant = flow.tenant
  v = math.max(v, urgent_start)
  urgent_start = urgent_start + t.cost / urgent.weight
  flow.start = flow.start + t.cost / number(urgent.flows, 'weight:' .. tenant)
  flow.num_gone = flow.num_gone + 1
  more_in_flight[tenant] = (more_in_flight[tenant] or 0) + 1
  local cap = number(IN_FLIGHT, 'cap:' .. tenant)
  local is_open = cap == 0 or number(IN_FLIGHT, 'n:' .. tenant) + more_in_flight[tenant] < cap
  flow.arrival = is_open and redis.call('ZRANGE', urgent.queue .. tenant, flow.num_gone, flow.num_gone)[1]
end

-- Let a victim be back in line, paid back what is left of it.
local function put_back(victim)
  if not victim.is_prepaid then
    local left = math.min(victim.charged, number(TASK .. victim.id, 'left'))
    patient_finish = patient_finish - left / victim.class_weight
  end
  patient_floor = patient_floor or v
  if not patient_arrival or victim.arrival < patient_arrival then patient_arrival = victim.arrival end
end

-- Whether the urgent class, with this arrival at its head, is the next one to be served.
local function is_next(arrival)
  for _, class in ipairs(class_list) do
    local start, rival = 0, redis.call('ZRANGE', class.heads, 0, 0)[1]
    if class == patient then
      start, rival = math.max(patient_floor or 0, patient_finish), patient_arrival
    elseif rival then
      start = start_tag(CLASSES, class.name)
    end
    local is_before = rival and (start < urgent_start or (start == urgent_start and rival < arrival))
    if class ~= urgent and is_before then return false end
  end
  return true
end

-- Whether a worker would have a slot for somebody else as soon as it lets one task go.
local function is_just_full(worker)
  local free, expires = num_free(worker)
  return expires and free == 0
end

-- The running task that was started last in virtual time; ties by arrival, the latest first.
local function find_victim()
  local victim
  for _, task in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '(' .. exact(now_ms), '+inf')) do
    local n = redis.call('HMGET', TASK .. task, 'class', 'state', 'yieldable', 'num_yields', 'since_ms', 'start')
    if n[1] == patient.name and n[2] == 'claimed' and n[3] == '1' and tonumber(n[4]) < max_yields
        and now_ms - tonumber(n[5]) >= min_run_ms then
      local candidate = read(task)
      candidate.start = tonumber(n[6] or '0')
      local is_later = not victim or candidate.start > victim.start
        or (candidate.start == victim.start and candidate.arrival > victim.arrival)
      if is_later and is_just_full(candidate.worker) then victim = candidate end
    end
  end
  return victim
end

while true do
  local flow, t = next_urgent()
  if not flow or not is_next(flow.arrival) then return nil end
  local asked = t.victim and read(t.victim)
  if asked and asked.yields_to == t.id then
    put_back(asked)
    take(flow, t)
  else
    local victim = now_ms - t.since_ms >= wait_ms and find_victim()
    if not victim then return nil end
    put_back(victim)
    if not is_next(flow.arrival) then return nil end
    redis.call('HSET', TASK .. victim.id, 'state', 'yielding', 'yields_to', t.id, 'yield_ttl_ms', ARGV[8])
    redis.call('HSET', TASK .. t.id, 'victim', victim.id)
    tell(victim, 'yield')
    return {victim.id, victim.worker, t.id}
  end
end
