-- A worker is up. Idempotent; what it holds in leases stays counted.
-- ARGV: 3 worker, 4 ttl_ms, 5 slots, 6 device, 7 group_size, 8 models.
local worker, expires = ARGV[3], exact(now_ms + tonumber(ARGV[4]))
local is_drained = redis.call('SISMEMBER', DRAINS, worker) == 1 or redis.call('SISMEMBER', DRAINS, '') == 1
redis.call('HSET', WORKER .. worker, 'slots', ARGV[5], 'withheld', 0, 'device', ARGV[6], 'group_size', ARGV[7],
  'models', ARGV[8], 'expires', expires, 'drained', is_drained and 1 or 0, 'leaving', 0)
redis.call('PEXPIRE', WORKER .. worker, ARGV[4])
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', exact(now_ms))
redis.call('ZADD', WORKERS, expires, worker)
update_idle(worker)
return 1
