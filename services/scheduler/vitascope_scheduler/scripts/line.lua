-- What a simulation of the line needs: who waits with which tags, what runs, how many slots there are. Changes nothing.
-- The flows share `limit` tasks, the short ones first; of a longer one the rest is told as a number and a sum of costs.
-- ARGV: 3 limit. Returns [num_slots, num_free, group_size, v, classes, in_flight] as the tables below say, in JSON,
-- where an empty list is {} and numbers with a fraction are strings.
local left = tonumber(ARGV[3])

local num_flows = 0
for _, class in ipairs(class_list) do num_flows = num_flows + redis.call('ZCARD', class.backlogs) end

local function flow_of(class, tenant, backlog_ms)
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
  return {
    tenant, exact(number(class.flows, 'weight:' .. tenant)), number(IN_FLIGHT, 'cap:' .. tenant),
    exact(start_tag(class.flows, tenant)), tasks, redis.call('ZCARD', class.queue .. tenant) - #tasks,
    exact(backlog_ms - listed_ms)
  }
end

local classes = {}
for i, class in ipairs(class_list) do
  local flows, backlogs = {}, redis.call('ZRANGE', class.backlogs, 0, -1, 'WITHSCORES')
  for j = 1, #backlogs, 2 do flows[#flows + 1] = flow_of(class, backlogs[j], tonumber(backlogs[j + 1])) end
  classes[i] = {
    class.name, exact(class.weight), redis.call('HGET', class.flows, 'v') or '0', exact(start_tag(CLASSES, class.name)),
    flows
  }
end

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
