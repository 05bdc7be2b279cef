-- Estimate how many tasks are dispatched before this one: let every flow and class spend its tags on tasks of this cost.
-- ARGV: 3 task. Returns {position, cost, tasks in flight in the pool}, or nil when it does not wait here.
local t = read(ARGV[3])
if not t or t.state ~= 'waiting' then return nil end
local cost, class = math.max(number(KEYS[6] .. t.id, 'cost'), 1e-9), t.class

-- Tasks of a sibling whose start tag lies before `tag`, and whether one more has this very tag.
local function num_before(tag, start, weight)
  local turns = math.max(0, (tag - start) * weight / cost)
  return math.ceil(turns), start <= tag and turns == math.floor(turns)
end

local line = class.queue .. t.tenant
local rank = redis.call('ZRANK', line, t.arrival .. ':' .. t.id)
local tag = start_tag(class.flows, t.tenant) + rank * cost / number(class.flows, 'weight:' .. t.tenant)
local position = rank
for _, member in ipairs(redis.call('ZRANGE', class.heads, 0, 999)) do
  local tenant = string.sub(member, ARRIVAL_CHARS + 2)
  if tenant ~= t.tenant then
    local start, weight = start_tag(class.flows, tenant), number(class.flows, 'weight:' .. tenant)
    local before, is_tie = num_before(tag, start, weight)
    local rival = is_tie and redis.call('ZRANGE', class.queue .. tenant, before, before)[1]
    if rival and rival < t.arrival then before = before + 1 end
    position = position + math.min(before, redis.call('ZCARD', class.queue .. tenant))
  end
end
local class_tag = start_tag(CLASSES, class.name) + position * cost / class.weight
for _, other in ipairs(class_list) do
  if other.name ~= class.name and redis.call('ZCARD', other.heads) > 0 then
    local before = num_before(class_tag, start_tag(CLASSES, other.name), other.weight)
    position = position + math.min(before, number(other.flows, 'num_waiting'))
  end
end
return {position, exact(cost), redis.call('ZCARD', LEASES)}
