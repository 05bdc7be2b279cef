-- A worker is up. Idempotent; what it holds in leases stays counted.
-- ARGV: 3 worker, 4 ttl_ms, 5 slots, 6 device, 7 group_size, 8 models.
local worker = ARGV[3]
redis.call('HSET', KEYS[7] .. worker, 'slots', ARGV[5], 'withheld', 0, 'device', ARGV[6], 'group_size', ARGV[7],
  'models', ARGV[8], 'expires', exact(now_ms + tonumber(ARGV[4])))
redis.call('PEXPIRE', KEYS[7] .. worker, ARGV[4])
update_idle(worker)
return 1
