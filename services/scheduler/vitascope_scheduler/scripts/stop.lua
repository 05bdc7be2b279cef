-- A task is cancelled: out of the line, or its worker is told to stop. Its slot stays taken until the worker lets go of
-- it (heartbeat), claims it in vain, or loses the lease. Idempotent.
-- ARGV: 3 task, 4 attempt. Returns "gone", "stopping" or "unknown".
local t = read(ARGV[3])
if not t then return 'unknown' end
if t.state == 'waiting' then
  leave_line(t)
  bury(t.id, tonumber(ARGV[4]) + 1)
  refresh(t.tenant, t.class)
  rest(t.class)
  return 'gone'
end
redis.call('HSET', TASK .. t.id, 'state', 'stopping')
local expires = redis.call('HGET', WORKER .. t.worker, 'expires')
if expires then send(t.worker, {command = 'stop', task_id = t.id, attempt = tonumber(ARGV[4])}, expires) end
return 'stopping'
