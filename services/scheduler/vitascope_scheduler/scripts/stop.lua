-- A task is cancelled: out of the line, or its worker is told to stop. Its slot stays taken until the worker lets go of
-- it (heartbeat), claims it in vain, or loses the lease. Idempotent.
-- ARGV: 3 task, 4 attempt. Returns "gone", "stopping" or "unknown".
local t = read(ARGV[3])
if not t then return 'unknown' end
if t.state == 'waiting' then
  leave_line(t)
  redis.call('DEL', KEYS[6] .. t.id)
  refresh(t.tenant)
  return 'gone'
end
redis.call('HSET', KEYS[6] .. t.id, 'state', 'stopping')
if redis.call('EXISTS', KEYS[7] .. t.worker) == 1 then
  local command = {command = 'stop', task_id = t.id, attempt = tonumber(ARGV[4])}
  redis.call('XADD', KEYS[9] .. t.worker, 'MAXLEN', '~', 1000, '*', 'data', cjson.encode(command))
end
return 'stopping'
