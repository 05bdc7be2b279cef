-- Apply a tenant's weight and cap to what already waits. Idempotent.
-- ARGV: 3 tenant, 4 weight, 5 cap (0: none).
local tenant = ARGV[3]
if is_idle(CLASSES) then return 1 end
redis.call('HSET', IN_FLIGHT, 'cap:' .. tenant, ARGV[5])
for _, class in ipairs(class_list) do
  if redis.call('HEXISTS', class.flows, 'weight:' .. tenant) == 1 then
    set_flow(class, tenant, ARGV[4], ARGV[5])
  end
end
refresh(tenant)
return 1
