-- What operators see of a pool, at most so many flows of each class, workers and leases. Changes nothing.
-- ARGV: 3 limit. Returns [[v, is_draining, num_waiting, num_in_flight, backlog_ms], classes, workers, leases] as the
-- tables below say, in JSON, where an empty list is {} and numbers with a fraction are strings.
local limit = tonumber(ARGV[3])
local pool = redis.call('HMGET', CLASSES, 'v', 'num_waiting', 'num_in_flight')

local leases, num_in_flight = {}, {}
local found = redis.call('ZRANGE', LEASES, 0, -1, 'WITHSCORES')
for i = 1, #found, 2 do
  local t = read(found[i])
  if t then
    local flow = t.class.name .. ':' .. t.tenant
    num_in_flight[flow] = (num_in_flight[flow] or 0) + 1
    if #leases < limit then
      local state = t.state
      if state == 'claimed' and redis.call('HGET', WORKER .. t.worker, 'drained') == '1'
          and redis.call('HGET', TASK .. t.id, 'yieldable') == '1' then
        state = 'yielding'
      end
      leases[#leases + 1] = {
        t.id, t.tenant, t.class.name, t.worker, state, exact(tonumber(found[i + 1]) - now_ms), exact(t.charged),
        t.attempt + 1
      }
    end
  end
end

-- Flows that were served, and what was due to them: all of them in a small pool, some in a large one.
local was_served = redis.call('HSCAN', SERVED, 0, 'COUNT', 4 * limit)[2]

-- Tenants of a class: those with the most that waits, then those in flight, then those that were served.
local function tenants_of(class)
  local tenants, is_listed = {}, {}
  local function list(tenant)
    if is_listed[tenant] or #tenants >= limit then return end
    is_listed[tenant] = true
    tenants[#tenants + 1] = tenant
  end
  for _, tenant in ipairs(redis.call('ZREVRANGE', class.backlogs, 0, limit - 1)) do list(tenant) end
  local prefix = class.name .. ':'
  for flow in pairs(num_in_flight) do
    if string.sub(flow, 1, #prefix) == prefix then list(string.sub(flow, #prefix + 1)) end
  end
  prefix = 'served:' .. prefix
  for i = 1, #was_served, 2 do
    if string.sub(was_served[i], 1, #prefix) == prefix then list(string.sub(was_served[i], #prefix + 1)) end
  end
  return tenants
end

-- What is due to a node in all: what was written down when it left its seat, and what has come since.
local function due(key, name, weight, account)
  local due_s = number(SERVED, 'entitled:' .. account)
  if redis.call('HEXISTS', key, 'head:' .. name) == 1 then due_s = due_s + entitled(key, name, weight) end
  return exact(due_s)
end

local function flow_of(class, tenant)
  local weight, account = number(class.flows, 'weight:' .. tenant), class.name .. ':' .. tenant
  return {
    tenant, exact(weight), number(IN_FLIGHT, 'cap:' .. tenant), exact(start_tag(class.flows, tenant)),
    redis.call('ZCARD', class.queue .. tenant), num_in_flight[account] or 0,
    redis.call('ZSCORE', class.backlogs, tenant) or '0',
    redis.call('HGET', SERVED, 'served:' .. account) or '0', due(class.flows, tenant, weight, account)
  }
end

local classes, backlog_ms = {}, 0
for i, class in ipairs(class_list) do
  local flows = {}
  for j, tenant in ipairs(tenants_of(class)) do flows[j] = flow_of(class, tenant) end
  local n = redis.call('HMGET', class.flows, 'v', 'num_waiting', 'num_in_flight', 'backlog_ms')
  backlog_ms = backlog_ms + tonumber(n[4] or '0')
  classes[i] = {
    class.name, exact(class.weight), n[1] or '0', exact(start_tag(CLASSES, class.name)), n[2] or '0', n[3] or '0',
    n[4] or '0', redis.call('HGET', SERVED, 'served:' .. class.name) or '0',
    due(CLASSES, class.name, class.weight, class.name), flows
  }
end

local workers = {}
found = redis.call('ZRANGEBYSCORE', WORKERS, '(' .. exact(now_ms), '+inf', 'LIMIT', 0, limit)
for _, worker in ipairs(found) do
  local w = redis.call('HMGET', WORKER .. worker, 'device', 'group_size', 'slots', 'models', 'expires', 'drained',
    'leaving')
  if w[3] then
    local is_draining = (w[6] == '1' or w[7] == '1') and 1 or 0
    workers[#workers + 1] = {
      worker, w[1], w[2], w[3], math.max(0, (num_free(worker))), w[4], exact(tonumber(w[5]) - now_ms), is_draining,
      redis.call('SMEMBERS', HELD .. worker)
    }
  end
end

local is_draining = redis.call('SISMEMBER', DRAINS, '')
local sums = {pool[1] or '0', is_draining, pool[2] or '0', pool[3] or '0', exact(backlog_ms)}
return cjson.encode({sums, classes, workers, leases})
