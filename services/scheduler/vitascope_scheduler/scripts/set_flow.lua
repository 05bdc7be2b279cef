-- Apply a tenant's weight and cap to what already waits. Idempotent.
-- ARGV: 3 tenant, 4 weight, 5 cap (0: none).
local tenant = ARGV[3]
redis.call('HSET', IN_FLIGHT, 'cap:' .. tenant, ARGV[5])
for _, class in ipairs(class_list) do
  if redis.call('HEXISTS', class.flows, 'weight:' .. tenant) == 1 then
    redis.call('HSET', class.flows, 'weight:' .. tenant, ARGV[4])
  end
end
refresh(tenant)
return 1
