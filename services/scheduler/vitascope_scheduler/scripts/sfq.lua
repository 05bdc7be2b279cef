-- Start-time fair queueing on two levels (Goyal, Vin and Cheng, 1997): what every script of a pool shares.
--
-- Each level is plain SFQ with its own v. A node that becomes eligible takes floor = v; its start tag is
-- S = max(floor, F); a dispatch sets v = max(v, S) and F = S + cost / weight. Tags are made at the head of the line, so
-- weights and caps apply to the backlog at once, and a corrected F moves a waiting head. With nothing waiting and
-- nothing in flight all tags of a level are forgotten, which is v = max F for everybody.
--
-- KEYS: 1 classes, 2 class_heads, 3 in_flight, 4 leases, 5 idle, 6 workers, 7 drains, 8 served, then prefixes: 9 task,
--       10 worker, 11 held, 12 inbox; then for each class: its flows, its flow_heads, its backlogs, the prefix of its
--       queues. All carry the hash tag of the pool.
-- ARGV: 1 now_ms, 2 classes as JSON [[name, weight], ...], from 3 on what the script at hand says.
--
-- A member of a queue or of flow_heads is ARRIVAL:ID with an arrival of fixed width: equal scores keep arrival order.
-- A task is "waiting", "handed_over", "claimed", "yielding" (asked to make way for the task `yields_to`, whose `victim`
-- it is) or "stopping"; of one that has ended only `ended` is left, for a while. Sums of costs are whole
-- GPU-milliseconds, so that what is added is taken off again exactly.

local CLASSES, CLASS_HEADS, IN_FLIGHT, LEASES, IDLE = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local WORKERS, DRAINS, SERVED = KEYS[6], KEYS[7], KEYS[8]
local TASK, WORKER, HELD, INBOX = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local ARRIVAL_CHARS, TOMBSTONE_MS = 28, 60000
local now_ms = tonumber(ARGV[1])
local class_list, class_of = {}, {}
for i, entry in ipairs(cjson.decode(ARGV[2])) do
  local base = 12 + 4 * (i - 1)
  class_list[i] = {
    name = entry[1], weight = entry[2], flows = KEYS[base + 1], heads = KEYS[base + 2], backlogs = KEYS[base + 3],
    queue = KEYS[base + 4]
  }
  class_of[entry[1]] = class_list[i]
end

local function number(key, field)
  return tonumber(redis.call('HGET', key, field) or '0')
end

local function exact(value)
  return string.format('%.17g', value)
end

-- Whole milliseconds, and for -x the same as for x.
local function milliseconds(seconds)
  local whole = math.floor(math.abs(seconds) * 1000 + 0.5)
  return string.format('%.0f', seconds < 0 and whole > 0 and -whole or whole)
end

-- Start tag of a node, and the virtual time of its level.
local function start_tag(key, name)
  local n = redis.call('HMGET', key, 'floor:' .. name, 'v', 'F:' .. name)
  return math.max(tonumber(n[1] or n[2] or '0'), tonumber(n[3] or '0')), tonumber(n[2] or '0')
end

-- GPU-seconds that are due to a node: its share of the virtual time since it took its seat, or its weight changed.
local function entitled(key, name, weight)
  local n = redis.call('HMGET', key, 'v', 'since:' .. name, 'floor:' .. name)
  return weight * (tonumber(n[1] or '0') - tonumber(n[2] or n[3] or '0'))
end

local function accrue(key, name, weight, account)
  local due = entitled(key, name, weight)
  if due ~= 0 then redis.call('HINCRBYFLOAT', SERVED, 'entitled:' .. account, exact(due)) end
end

-- Let a node stand among its siblings' heads, or take it away.
local function seat(key, heads, name, member, weight, account)
  local n = redis.call('HMGET', key, 'head:' .. name, 'floor:' .. name, 'v', 'F:' .. name)
  local seated, floor, finish = n[1], n[2] or n[3] or '0', n[4] or '0'
  if seated and seated ~= member then redis.call('ZREM', heads, seated) end
  if not member then
    if seated then
      accrue(key, name, weight or number(key, 'weight:' .. name), account)
      redis.call('HDEL', key, 'head:' .. name, 'floor:' .. name, 'since:' .. name)
    end
    return
  end
  if not seated then
    redis.call('HSET', key, 'head:' .. name, member, 'floor:' .. name, floor)
  elseif seated ~= member then
    redis.call('HSET', key, 'head:' .. name, member)
  end
  redis.call('ZADD', heads, exact(math.max(tonumber(floor), tonumber(finish))), member)
end

local function is_below_cap(tenant)
  local n = redis.call('HMGET', IN_FLIGHT, 'cap:' .. tenant, 'n:' .. tenant)
  local cap = tonumber(n[1] or '0')
  return cap == 0 or tonumber(n[2] or '0') < cap, cap
end

local function is_idle(key)
  local n = redis.call('HMGET', key, 'num_waiting', 'num_in_flight')
  return tonumber(n[1] or '0') == 0 and tonumber(n[2] or '0') == 0
end

-- Bring heads and tags in line with what changed for a tenant: in one class, or in all of them (nil, or when its cap
-- may have opened or closed the others).
local function refresh(tenant, only)
  local is_eligible, cap = is_below_cap(tenant)
  for _, class in ipairs(only and cap == 0 and {only} or class_list) do
    local first = is_eligible and redis.call('ZRANGE', class.queue .. tenant, 0, 0)[1]
    local member = first and (string.sub(first, 1, ARRIVAL_CHARS) .. ':' .. tenant) or nil
    seat(class.flows, class.heads, tenant, member, nil, class.name .. ':' .. tenant)
    local has_heads = redis.call('ZCARD', class.heads) > 0
    seat(CLASSES, CLASS_HEADS, class.name, has_heads and class.name or nil, class.weight, class.name)
  end
end

-- Something has left a class for good: forget the tags of what is idle altogether.
local function rest(class)
  if is_idle(class.flows) then redis.call('DEL', class.flows) end
  if is_idle(CLASSES) then redis.call('DEL', CLASSES, IN_FLIGHT) end
end

local function count(class, tenant, waiting, in_flight)
  for _, key in ipairs({CLASSES, class.flows}) do
    if waiting ~= 0 then redis.call('HINCRBY', key, 'num_waiting', waiting) end
    if in_flight ~= 0 then redis.call('HINCRBY', key, 'num_in_flight', in_flight) end
  end
  if in_flight ~= 0 and redis.call('HINCRBY', IN_FLIGHT, 'n:' .. tenant, in_flight) == 0 then
    redis.call('HDEL', IN_FLIGHT, 'n:' .. tenant)
  end
end

-- Apply weight and cap to a flow. Returns whether the cap is another one: then all classes need a refresh.
local function set_flow(class, tenant, weight, cap)
  local before = redis.call('HGET', class.flows, 'weight:' .. tenant)
  if before ~= weight then
    if before and redis.call('HEXISTS', class.flows, 'head:' .. tenant) == 1 then
      accrue(class.flows, tenant, tonumber(before), class.name .. ':' .. tenant)
      redis.call('HSET', class.flows, 'since:' .. tenant, redis.call('HGET', class.flows, 'v') or '0')
    end
    redis.call('HSET', class.flows, 'weight:' .. tenant, weight)
  end
  if redis.call('HGET', IN_FLIGHT, 'cap:' .. tenant) == cap then return false end
  redis.call('HSET', IN_FLIGHT, 'cap:' .. tenant, cap)
  return true
end

local function count_served(class, tenant, amount_ms)
  redis.call('HINCRBY', SERVED, 'served:' .. class.name, amount_ms)
  redis.call('HINCRBY', SERVED, 'served:' .. class.name .. ':' .. tenant, amount_ms)
end

-- Charge a task to its flow and its class and remember the terms. When it is its turn, the virtual times are its tags.
local function charge(t, is_its_turn)
  local class, weight = t.class, number(t.class.flows, 'weight:' .. t.tenant)
  local start, v = start_tag(class.flows, t.tenant)
  local class_start, class_v = start_tag(CLASSES, class.name)
  if is_its_turn then v, class_v = math.max(v, start), math.max(class_v, class_start) end
  redis.call('HSET', class.flows, 'F:' .. t.tenant, exact(start + t.cost / weight), 'v', exact(v))
  redis.call('HSET', CLASSES, 'F:' .. class.name, exact(class_start + t.cost / class.weight), 'v', exact(class_v))
  redis.call('HSET', TASK .. t.id, 'charged', exact(t.cost), 'weight', exact(weight), 'class_weight',
    exact(class.weight), 'start', exact(start))
  count_served(class, t.tenant, milliseconds(t.cost))
end

-- What Redis knows of a task; or nil, and of one that has ended after how many attempts.
local function read(task)
  local t = redis.call('HMGET', TASK .. task, 'tenant', 'class', 'state', 'attempt', 'arrival', 'cost', 'charged',
    'weight', 'class_weight', 'worker', 'prepaid', 'since_ms', 'yields_to', 'victim', 'yield_ttl_ms',
    'traceparent', 'ended')
  if not t[1] then return nil, t[17] end
  return {
    id = task, tenant = t[1], class = class_of[t[2]], state = t[3], attempt = tonumber(t[4]), arrival = t[5],
    cost = tonumber(t[6] or '0'), charged = tonumber(t[7] or '0'), weight = tonumber(t[8] or '1'),
    class_weight = tonumber(t[9] or '1'), worker = t[10], is_prepaid = t[11] == '1',
    since_ms = tonumber(t[12] or '0'), yields_to = t[13], victim = t[14], yield_ttl_ms = tonumber(t[15] or '0'),
    traceparent = t[16]
  }
end

-- Give `amount` of what was charged back to flow and class (negative: charge more).
local function refund(t, amount)
  if amount == 0 then return end
  local class = t.class
  redis.call('HSET', class.flows, 'F:' .. t.tenant, exact(number(class.flows, 'F:' .. t.tenant) - amount / t.weight))
  redis.call('HSET', CLASSES, 'F:' .. class.name, exact(number(CLASSES, 'F:' .. class.name) - amount / t.class_weight))
  count_served(class, t.tenant, milliseconds(-amount))
end

-- Slots of a worker that may be given away, and when its registration expires.
local function num_free(worker)
  local w = redis.call('HMGET', WORKER .. worker, 'slots', 'withheld', 'expires', 'drained')
  if not w[1] or tonumber(w[3]) <= now_ms or w[4] == '1' then return 0, nil end
  return tonumber(w[1]) - tonumber(w[2]) - redis.call('SCARD', HELD .. worker), w[3]
end

local function update_idle(worker)
  local free, expires = num_free(worker)
  if free > 0 then redis.call('ZADD', IDLE, expires, worker) else redis.call('ZREM', IDLE, worker) end
end

local function send(worker, command, expires)
  redis.call('XADD', INBOX .. worker, 'MAXLEN', '~', 1000, '*', 'data', cjson.encode(command))
  redis.call('PEXPIRE', INBOX .. worker, math.max(1, math.ceil(tonumber(expires) - now_ms)))
end

-- Tell the worker of a claimed task something about it, while its registration lasts.
local function tell(t, command)
  local expires = redis.call('HGET', WORKER .. t.worker, 'expires')
  if expires then send(t.worker, {command = command, task_id = t.id, attempt = t.attempt + 1}, expires) end
end

local function give_lease(task, worker, ttl_ms)
  redis.call('SADD', HELD .. worker, task)
  redis.call('ZADD', LEASES, exact(now_ms + ttl_ms), task)
end

local function take_slot_back(t)
  if not t.worker then return end
  redis.call('SREM', HELD .. t.worker, t.id)
  update_idle(t.worker)
end

-- A task need not make way any more. Returns whether it was about to.
local function unmark(task)
  local found = redis.call('HMGET', TASK .. task, 'state', 'yields_to')
  if not found[2] then return false end
  redis.call('HDEL', TASK .. task, 'yields_to', 'yield_ttl_ms')
  redis.call('HDEL', TASK .. found[2], 'victim')
  if found[1] ~= 'yielding' then return false end
  redis.call('HSET', TASK .. task, 'state', 'claimed')
  return true
end

-- Whoever was asked to make way for a task that has left the line may go on, unless its worker is drained.
local function call_off(victim)
  if not unmark(victim) then return end
  local t = read(victim)
  if redis.call('HGET', WORKER .. t.worker, 'drained') ~= '1' then tell(t, 'run') end
end

-- Let a task wait. Returns whether it is the first of its line.
local function wait_in_line(t, priority)
  local line, member = t.class.queue .. t.tenant, t.arrival .. ':' .. t.id
  redis.call('ZADD', line, priority, member)
  redis.call('ZINCRBY', t.class.backlogs, milliseconds(t.cost), t.tenant)
  redis.call('HINCRBY', t.class.flows, 'backlog_ms', milliseconds(t.cost))
  count(t.class, t.tenant, 1, 0)
  return redis.call('ZRANK', line, member) == 0
end

local function leave_line(t)
  redis.call('ZREM', t.class.queue .. t.tenant, t.arrival .. ':' .. t.id)
  if tonumber(redis.call('ZINCRBY', t.class.backlogs, milliseconds(-t.cost), t.tenant)) <= 0 then
    redis.call('ZREM', t.class.backlogs, t.tenant)
  end
  redis.call('HINCRBY', t.class.flows, 'backlog_ms', milliseconds(-t.cost))
  count(t.class, t.tenant, -1, 0)
  if t.victim then call_off(t.victim) end
end

-- End the flight of a task: the flow has paid all of it but `left`, the slot is free. What is prepaid moves no tag.
local function land(t, left)
  if not t.is_prepaid then refund(t, left) end
  redis.call('ZREM', LEASES, t.id)
  take_slot_back(t)
  count(t.class, t.tenant, 0, -1)
  if t.yields_to then unmark(t.id) end
end

-- A task is over after `ended` attempts: what was read of it before cannot make it wait again.
local function bury(task, ended)
  redis.call('DEL', TASK .. task)
  redis.call('HSET', TASK .. task, 'ended', ended)
  redis.call('PEXPIRE', TASK .. task, TOMBSTONE_MS)
end

-- The task whose turn it is, or nil: the least start tag on each level, ties by arrival.
local function pick()
  local class, class_start, class_arrival
  local seats = redis.call('ZRANGE', CLASS_HEADS, 0, -1, 'WITHSCORES')
  for i = 1, #seats, 2 do
    local candidate, start = class_of[seats[i]], tonumber(seats[i + 1])
    local arrival = redis.call('ZRANGE', candidate.heads, 0, 0)[1]
    if not class or start < class_start or (start == class_start and arrival < class_arrival) then
      class, class_start, class_arrival = candidate, start, arrival
    end
  end
  if not class then return nil end
  local tenant = string.sub(class_arrival, ARRIVAL_CHARS + 2)
  local member = redis.call('ZRANGE', class.queue .. tenant, 0, 0)[1]
  return read(string.sub(member, ARRIVAL_CHARS + 2))
end

-- Give a waiting task to a worker, of which `num_free` has said two things: charge, lease and inbox entry. Returns what
-- the dispatcher is told.
local function hand_over(t, worker, ttl_ms, free, expires)
  charge(t, true)
  leave_line(t)
  count(t.class, t.tenant, 0, 1)
  redis.call('HSET', TASK .. t.id, 'state', 'handed_over', 'worker', worker, 'since_ms', exact(now_ms))
  give_lease(t.id, worker, ttl_ms)
  if free == 1 then redis.call('ZREM', IDLE, worker) end
  refresh(t.tenant, t.class)
  send(worker, {command = 'assign', tasks = {{task_id = t.id, traceparent = t.traceparent}}}, expires)
  return {t.id, t.tenant, t.class.name, t.traceparent, worker}
end

-- A task that was asked to make way has landed: its slot goes to the one it made way for, or to whoever's turn it is
-- when that one may not run. Returns what was handed over, or nil.
local function pass_on(t)
  if not t.yields_to then return nil end
  local free, expires = num_free(t.worker)
  if free <= 0 then return nil end
  local heir = read(t.yields_to)
  if not (heir and heir.state == 'waiting' and is_below_cap(heir.tenant)) then heir = pick() end
  return heir and hand_over(heir, t.worker, t.yield_ttl_ms, free, expires)
end

-- A place in line that stays a task's own: when the job was accepted, then the order of first sight.
local function arrival_of(accepted_at_ms)
  local seq = redis.call('HINCRBY', CLASSES, 'seq', 1)
  return string.format('%015.0f-%012.0f', tonumber(accepted_at_ms), seq)
end
