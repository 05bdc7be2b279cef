-- What a simulation of the line needs: who waits with which tags, what runs, how many slots there are. Changes nothing.
-- The flows share `limit` tasks, the short ones first; of a longer one the rest is told as a number and a sum of costs.
-- So are the flows that come after the first `max_flows`: as one of the tenant '', with as much weight as it has flows,
-- that stands behind all others.
-- ARGV: 3 limit, 4 max_flows. Returns [num_slots, num_free, group_size, v, classes, in_flight] as the tables below say,
-- in JSON, where an empty list is {} and numbers with a fraction are strings.
local left, num_flows_left = tonumber(ARGV[3]), tonumber(ARGV[4])

-- So many flows of a class, those with the least backlog first: those whose turn comes first, and when there are no
-- more of these, others that wait for their caps.
local function flows_of(class, limit)
  local flows, is_listed = {}, {}
  local function list(tenant)
    if is_listed[tenant] or #flows >= limit then return end
    is_listed[tenant] = true
    local backlog_ms = tonumber(redis.call('ZSCORE', class.backlogs, tenant) or '0')
    flows[#flows + 1] = {tenant = tenant, backlog_ms = backlog_ms}
  end
  for _, member in ipairs(limit > 0 and redis.call('ZRANGE', class.heads, 0, limit - 1) or {}) do
    list(string.sub(member, ARRIVAL_CHARS + 2))
  end
  for _, tenant in ipairs(limit > 0 and redis.call('ZRANGE', class.backlogs, 0, limit - 1) or {}) do list(tenant) end
  table.sort(flows, function(one, other)
    return one.backlog_ms < other.backlog_ms or (one.backlog_ms == other.backlog_ms and one.tenant < other.tenant)
  end)
  return flows
end

-- The classes share the flows, and what one does not need goes to the others.
local num_flows, flows_by_class, by_size = 0, {}, {}
for i, class in ipairs(class_list) do by_size[i] = {class = class, size = redis.call('ZCARD', class.backlogs), i = i} end
table.sort(by_size, function(one, other)
  return one.size < other.size or (one.size == other.size and one.i < other.i)
end)
for i, entry in ipairs(by_size) do
  local flows = flows_of(entry.class, math.ceil(num_flows_left / (#by_size - i + 1)))
  flows_by_class[entry.i] = flows
  num_flows, num_flows_left = num_flows + #flows, num_flows_left - #flows
end

-- The next tasks of a flow, as many as are its share.
local function tasks_of(class, tenant)
  local share = math.ceil(left / num_flows)
  local tasks, listed_ms = {}, 0
  if share > 0 then
    for _, member in ipairs(redis.call('ZRANGE', class.queue .. tenant, 0, share - 1)) do
      local task = string.sub(member, ARRIVAL_CHARS + 2)
      local cost = redis.call('HGET', TASK .. task, 'cost')
      tasks[#tasks + 1] = {task, string.sub(member, 1, ARRIVAL_CHARS), cost}
      listed_ms = listed_ms + tonumber(milliseconds(tonumber(cost)))
    end
  end
  left, num_flows = left - #tasks, num_flows - 1
  return tasks, listed_ms
end

local function class_of_line(class, listed)
  local flows, last_start = {}, 0
  local num_rest, rest_ms = number(class.flows, 'num_waiting'), number(class.flows, 'backlog_ms')
  for j, flow in ipairs(listed) do
    local tenant, start = flow.tenant, start_tag(class.flows, flow.tenant)
    local num_waiting = redis.call('ZCARD', class.queue .. tenant)
    local tasks, listed_ms = tasks_of(class, tenant)
    flows[j] = {
      tenant, exact(number(class.flows, 'weight:' .. tenant)), number(IN_FLIGHT, 'cap:' .. tenant), exact(start), tasks,
      num_waiting - #tasks, exact(flow.backlog_ms - listed_ms)
    }
    num_rest, rest_ms, last_start = num_rest - num_waiting, rest_ms - flow.backlog_ms, math.max(last_start, start)
  end
  local num_rest_flows = redis.call('ZCARD', class.backlogs) - #listed
  if num_rest_flows > 0 then
    flows[#flows + 1] = {'', num_rest_flows, 0, exact(last_start), {}, num_rest, exact(rest_ms)}
  end
  return {
    class.name, exact(class.weight), redis.call('HGET', class.flows, 'v') or '0', exact(start_tag(CLASSES, class.name)),
    flows
  }
end

local classes = {}
for i, class in ipairs(class_list) do classes[i] = class_of_line(class, flows_by_class[i]) end

local num_slots, num_free_slots, group_size, gets_work = 0, 0, 1, {}
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. exact(now_ms), '+inf')) do
  local w = redis.call('HMGET', WORKER .. worker, 'slots', 'group_size', 'drained', 'leaving')
  if w[1] and w[3] ~= '1' and w[4] ~= '1' then
    num_slots, group_size, gets_work[worker] = num_slots + tonumber(w[1]), tonumber(w[2]), true
    num_free_slots = num_free_slots + math.max(0, (num_free(worker)))
  end
end

local in_flight = {}
for _, task in ipairs(redis.call('ZRANGE', LEASES, 0, -1)) do
  local t = read(task)
  if t then
    local cost = t.is_prepaid and t.cost or t.charged
    in_flight[#in_flight + 1] = {t.tenant, exact(cost), exact(now_ms - t.since_ms), gets_work[t.worker] and 1 or 0}
  end
end
local v = redis.call('HGET', CLASSES, 'v') or '0'
return cjson.encode({num_slots, num_free_slots, group_size, v, classes, in_flight})
