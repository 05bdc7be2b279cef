-- Renew a registration. Free slots are what the leases say; tasks it lists without a lease take a slot as well.
-- A worker that is draining gets nothing more, and what it was handed and has not claimed falls due at once.
-- ARGV: 3 worker, 4 ttl_ms, 5 models, 6 is_draining, 7 and on: every task it holds. Returns nil when the worker is not
-- known, else the tasks it has let go: cancelled ones that it no longer lists, and those that fell due.
local worker, ttl_ms, is_draining = ARGV[3], ARGV[4], ARGV[6] == '1'
local slots = redis.call('HGET', WORKER .. worker, 'slots')
if not slots then return nil end
local listed, num_withheld, let_go = {}, 0, {}
for i = 7, #ARGV do
  listed[ARGV[i]] = true
  if redis.call('SISMEMBER', HELD .. worker, ARGV[i]) == 0 then num_withheld = num_withheld + 1 end
end
if is_draining then num_withheld = slots end
for _, task in ipairs(redis.call('SMEMBERS', HELD .. worker)) do
  local state = redis.call('HGET', TASK .. task, 'state')
  local is_stopping = state == 'stopping'
  if listed[task] then
    if is_stopping then redis.call('ZADD', LEASES, 'XX', exact(now_ms + tonumber(ttl_ms)), task) end
  elseif is_stopping or is_draining then
    if is_draining then redis.call('ZADD', LEASES, 'XX', exact(now_ms), task) end
    let_go[#let_go + 1] = task
  elseif not state then
    redis.call('SREM', HELD .. worker, task)  -- nobody knows of it any more
  end
end
local expires = exact(now_ms + tonumber(ttl_ms))
redis.call('HSET', WORKER .. worker, 'withheld', num_withheld, 'models', ARGV[5], 'expires', expires,
  'leaving', ARGV[6])
redis.call('PEXPIRE', WORKER .. worker, ttl_ms)
redis.call('PEXPIRE', INBOX .. worker, ttl_ms)
redis.call('ZADD', WORKERS, expires, worker)
update_idle(worker)
return let_go
