-- End a task: out of the line, or paid by what it really used, and its slot free. Idempotent.
-- One that was asked to make way leaves its slot to the task it made way for, in the same step.
-- ARGV: 3 task, 4 ended: nothing happens when an attempt after this number of attempts is known here, 5 actual cost.
-- Returns 0 when there was nothing to end, else 1, or what got its slot as `dispatch` does.
local t = read(ARGV[3])
if not t or t.attempt >= tonumber(ARGV[4]) then return 0 end
if t.state == 'waiting' then leave_line(t) else land(t, t.charged - tonumber(ARGV[5])) end
redis.call('DEL', TASK .. t.id)
refresh(t.tenant, t.class)
rest(t.class)
return pass_on(t) or 1
