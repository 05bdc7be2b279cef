-- End a task: out of the line, or paid by what it really used, and its slot free. Idempotent.
-- ARGV: 3 task, 4 ended: nothing happens when an attempt after this number of attempts is known here, 5 actual cost.
-- Returns 1 when there was something to end, else 0.
local t = read(ARGV[3])
if not t or t.attempt >= tonumber(ARGV[4]) then return 0 end
if t.state == 'waiting' then leave_line(t) else land(t, t.charged - tonumber(ARGV[5])) end
redis.call('DEL', KEYS[6] .. t.id)
refresh(t.tenant)
return 1
