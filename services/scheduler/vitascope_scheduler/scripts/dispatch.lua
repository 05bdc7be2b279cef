-- Give one free slot of a worker to the task whose turn it is: lease, charge and inbox entry in one step.
-- ARGV: 3 worker, 4 lease_ttl_ms. Returns {task, tenant, class, traceparent, worker}, 0: no free slot, or 1: nothing
-- eligible.
local worker = ARGV[3]
local free, expires = num_free(worker)
if free <= 0 then
  redis.call('ZREM', IDLE, worker)
  return 0
end
local t = pick()
if not t then return 1 end
return hand_over(t, worker, tonumber(ARGV[4]), free, expires)
