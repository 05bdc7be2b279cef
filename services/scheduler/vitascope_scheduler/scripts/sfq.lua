-- Start-time fair queueing on two levels (Goyal, Vin and Cheng, 1997): what every script of a pool shares.
--
-- Each level is plain SFQ with its own v. A node that becomes eligible takes floor = v; its start tag is
-- S = max(floor, F); a dispatch sets v = max(v, S) and F = S + cost / weight. Tags are made at the head of the line, so
-- weights and caps apply to the backlog at once, and a corrected F moves a waiting head. With nothing waiting and
-- nothing in flight all tags of a level are forgotten, which is v = max F for everybody.
--
-- KEYS: 1 classes, 2 class_heads, 3 in_flight, 4 leases, 5 idle, then prefixes: 6 task, 7 worker, 8 held, 9 inbox;
--       then for each class: its flows, its flow_heads, the prefix of its queues. All carry the hash tag of the pool.
-- ARGV: 1 now_ms, 2 classes as JSON [[name, weight], ...], from 3 on what the script at hand says.
--
-- A member of a queue or of flow_heads is ARRIVAL:ID with an arrival of fixed width: equal scores keep arrival order.

local CLASSES, LEASES, IDLE, IN_FLIGHT = KEYS[1], KEYS[4], KEYS[5], KEYS[3]
local ARRIVAL_CHARS = 28
local now_ms = tonumber(ARGV[1])
local class_list, class_of = {}, {}
for i, entry in ipairs(cjson.decode(ARGV[2])) do
  local base = 9 + 3 * (i - 1)
  class_list[i] = {
    name = entry[1], weight = entry[2], flows = KEYS[base + 1], heads = KEYS[base + 2], queue = KEYS[base + 3]
  }
  class_of[entry[1]] = class_list[i]
end

local function number(key, field)
  return tonumber(redis.call('HGET', key, field) or '0')
end

local function exact(value)
  return string.format('%.17g', value)
end

local function start_tag(key, name)
  local floor = redis.call('HGET', key, 'floor:' .. name) or redis.call('HGET', key, 'v') or '0'
  return math.max(tonumber(floor), number(key, 'F:' .. name))
end

-- Let a node stand among its siblings' heads, or take it away.
local function seat(key, heads, name, member)
  local seated = redis.call('HGET', key, 'head:' .. name)
  if seated and seated ~= member then redis.call('ZREM', heads, seated) end
  if not member then
    if seated then redis.call('HDEL', key, 'head:' .. name, 'floor:' .. name) end
    return
  end
  if not seated then redis.call('HSET', key, 'floor:' .. name, redis.call('HGET', key, 'v') or '0') end
  if seated ~= member then redis.call('HSET', key, 'head:' .. name, member) end
  redis.call('ZADD', heads, exact(start_tag(key, name)), member)
end

local function is_below_cap(tenant)
  local cap = number(IN_FLIGHT, 'cap:' .. tenant)
  return cap == 0 or number(IN_FLIGHT, 'n:' .. tenant) < cap
end

-- Bring heads and tags in line with what changed for a tenant; forget the tags of what is idle altogether.
local function refresh(tenant)
  local is_eligible = is_below_cap(tenant)
  for _, class in ipairs(class_list) do
    local first = is_eligible and redis.call('ZRANGE', class.queue .. tenant, 0, 0)[1]
    local member = first and (string.sub(first, 1, ARRIVAL_CHARS) .. ':' .. tenant) or nil
    seat(class.flows, class.heads, tenant, member)
    local has_heads = redis.call('ZCARD', class.heads) > 0
    seat(CLASSES, KEYS[2], class.name, has_heads and class.name or nil)
    if number(class.flows, 'num_waiting') == 0 and number(class.flows, 'num_in_flight') == 0 then
      redis.call('DEL', class.flows)
    end
  end
  if number(CLASSES, 'num_waiting') == 0 and number(CLASSES, 'num_in_flight') == 0 then
    redis.call('DEL', CLASSES, IN_FLIGHT)
  end
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

local function set_flow(class, tenant, weight, cap)
  redis.call('HSET', class.flows, 'weight:' .. tenant, weight)
  redis.call('HSET', IN_FLIGHT, 'cap:' .. tenant, cap)
end

-- Charge a task to its flow and its class and remember the terms. Returns the start tags of both.
local function charge(class, tenant, task)
  local cost, weight = number(KEYS[6] .. task, 'cost'), number(class.flows, 'weight:' .. tenant)
  local start, class_start = start_tag(class.flows, tenant), start_tag(CLASSES, class.name)
  redis.call('HSET', class.flows, 'F:' .. tenant, exact(start + cost / weight))
  redis.call('HSET', CLASSES, 'F:' .. class.name, exact(class_start + cost / class.weight))
  redis.call('HSET', KEYS[6] .. task, 'charged', exact(cost), 'weight', exact(weight),
    'class_weight', exact(class.weight))
  return start, class_start
end

-- What Redis knows of a task, or nil.
local function read(task)
  local t = redis.call('HMGET', KEYS[6] .. task, 'tenant', 'class', 'state', 'attempt', 'arrival', 'charged', 'weight',
    'class_weight', 'worker', 'prepaid')
  if not t[1] then return nil end
  return {
    id = task, tenant = t[1], class = class_of[t[2]], state = t[3], attempt = tonumber(t[4]), arrival = t[5],
    charged = tonumber(t[6] or '0'), weight = tonumber(t[7] or '1'), class_weight = tonumber(t[8] or '1'),
    worker = t[9], is_prepaid = t[10] == '1'
  }
end

-- Give `amount` of what was charged back to flow and class (negative: charge more).
local function refund(t, amount)
  local class = t.class
  redis.call('HSET', class.flows, 'F:' .. t.tenant, exact(number(class.flows, 'F:' .. t.tenant) - amount / t.weight))
  redis.call('HSET', CLASSES, 'F:' .. class.name, exact(number(CLASSES, 'F:' .. class.name) - amount / t.class_weight))
end

local function num_free(worker)
  local w = redis.call('HMGET', KEYS[7] .. worker, 'slots', 'withheld', 'expires')
  if not w[1] or tonumber(w[3]) <= now_ms then return 0, nil end
  return tonumber(w[1]) - tonumber(w[2]) - redis.call('SCARD', KEYS[8] .. worker), w[3]
end

local function update_idle(worker)
  local free, expires = num_free(worker)
  if free > 0 then redis.call('ZADD', IDLE, expires, worker) else redis.call('ZREM', IDLE, worker) end
end

local function give_lease(task, worker, ttl_ms)
  redis.call('SADD', KEYS[8] .. worker, task)
  redis.call('ZADD', LEASES, exact(now_ms + ttl_ms), task)
  redis.call('HSET', KEYS[6] .. task, 'state', 'in_flight', 'worker', worker)
  update_idle(worker)
end

local function take_slot_back(t)
  if not t.worker then return end
  redis.call('SREM', KEYS[8] .. t.worker, t.id)
  update_idle(t.worker)
end

local function wait_in_line(t, priority)
  redis.call('ZADD', t.class.queue .. t.tenant, priority, t.arrival .. ':' .. t.id)
  count(t.class, t.tenant, 1, 0)
end

local function leave_line(t)
  redis.call('ZREM', t.class.queue .. t.tenant, t.arrival .. ':' .. t.id)
  count(t.class, t.tenant, -1, 0)
end

-- End the flight of a task: the flow has paid all of it but `left`, the slot is free. What is prepaid moves no tag.
local function land(t, left)
  if not t.is_prepaid then refund(t, left) end
  redis.call('ZREM', LEASES, t.id)
  take_slot_back(t)
  count(t.class, t.tenant, 0, -1)
end

-- A place in line that stays a task's own: when the job was accepted, then the order of first sight.
local function arrival_of(accepted_at_ms)
  local seq = redis.call('HINCRBY', CLASSES, 'seq', 1)
  return string.format('%015.0f-%012.0f', tonumber(accepted_at_ms), seq)
end
