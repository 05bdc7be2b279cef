-- Give one free slot of a worker to the task whose turn it is: lease, charge and inbox entry in one step.
-- ARGV: 3 worker, 4 lease_ttl_ms. Returns {task, tenant, class, traceparent}, 0: no free slot, or 1: nothing eligible.
local worker = ARGV[3]
local free, expires = num_free(worker)
if free <= 0 then
  redis.call('ZREM', IDLE, worker)
  return 0
end
local class, class_start, class_arrival
local seats = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for i = 1, #seats, 2 do
  local candidate, start = class_of[seats[i]], tonumber(seats[i + 1])
  local arrival = redis.call('ZRANGE', candidate.heads, 0, 0)[1]
  if not class or start < class_start or (start == class_start and arrival < class_arrival) then
    class, class_start, class_arrival = candidate, start, arrival
  end
end
if not class then return 1 end

local tenant = string.sub(class_arrival, ARRIVAL_CHARS + 2)
local member = redis.call('ZRANGE', class.queue .. tenant, 0, 0)[1]
local t = read(string.sub(member, ARRIVAL_CHARS + 2))
local flow_start
flow_start, class_start = charge(class, tenant, t.id)
redis.call('HSET', class.flows, 'v', exact(math.max(number(class.flows, 'v'), flow_start)))
redis.call('HSET', CLASSES, 'v', exact(math.max(number(CLASSES, 'v'), class_start)))
leave_line(t)
count(class, tenant, 0, 1)
give_lease(t.id, worker, tonumber(ARGV[4]))
refresh(tenant)

local traceparent = redis.call('HGET', KEYS[6] .. t.id, 'traceparent')
local command = {command = 'assign', tasks = {{task_id = t.id, traceparent = traceparent}}}
redis.call('XADD', KEYS[9] .. worker, 'MAXLEN', '~', 1000, '*', 'data', cjson.encode(command))
redis.call('PEXPIRE', KEYS[9] .. worker, math.max(1, math.ceil(tonumber(expires) - now_ms)))
return {t.id, tenant, class.name, traceparent}
