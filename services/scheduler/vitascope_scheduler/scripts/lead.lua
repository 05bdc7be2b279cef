-- Hold, or take when it is free, the lead of a duty. KEYS: 1 leader. ARGV: 1 replica, 2 ttl_ms. Returns 1 when held.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
