-- End a task: out of the line, or paid by what it really used, and its slot free. Idempotent.
-- One that was told to stop pays for the time that it had its slot, though no more than its charge: what its worker has
-- said of it by then may be nothing yet. One that nobody has claimed had no use of it. One that still waits here although
-- it ran (its hand-over had fallen due, and every word of its lease was lost) pays what it used all the same.
-- One that was asked to make way leaves its slot to the task it made way for, in the same step.
-- ARGV: 3 task, 4 ended: nothing happens when an attempt after this number of attempts is known here, 5 actual cost.
-- Returns 0 when there was nothing to end, else 1, or what got its slot as `dispatch` does.
local t = read(ARGV[3])
if not t then redis.call('ZREM', LEASES, ARGV[3]) end
if not t or t.attempt >= tonumber(ARGV[4]) then return 0 end
local paid = tonumber(ARGV[5])
if t.state == 'stopping' and redis.call('HEXISTS', TASK .. t.id, 'yieldable') == 1 then
  local group_size = tonumber(redis.call('HGET', WORKER .. t.worker, 'group_size') or '1')
  paid = math.max(paid, math.min(t.charged, (now_ms - t.since_ms) / 1000 * group_size))
end
if t.state == 'waiting' then
  leave_line(t)
  t.cost = paid
  if paid > 0 then charge(t, false) end
else land(t, t.charged - paid) end
bury(t.id, ARGV[4])
refresh(t.tenant, t.class)
rest(t.class)
return pass_on(t) or 1
