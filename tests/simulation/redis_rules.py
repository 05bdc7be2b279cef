"""What must hold of Redis after each script."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.sql_rules import SqlRules

from vitascope_common import keys

Violate = Callable[[str, str], None]
Say = Callable[..., None]


DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*{' .. ARGV[1] .. '}*')) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then found[key] = redis.call('HGETALL', key)
  elseif kind == 'zset' then found[key] = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then found[key] = redis.call('SMEMBERS', key) end
end
return cjson.encode(found)
"""
ARRIVAL_CHARS = 28
HAND_OVERS = frozenset({"dispatch", "enqueue", "settle"})
"""Scripts that answer with a list when they have handed over a task."""
PAID_WITHIN_S = 0.01  # sums of whole milliseconds
WAITING = "waiting"


def _pairs(values: list[str]) -> dict[str, str]:
    return dict(zip(values[::2], values[1::2], strict=True))


class View:
    """What Redis holds of one pool at one moment."""

    def __init__(self, pool: str, text: str) -> None:
        found: dict[str, list[str]] = json.loads(text)
        task, held, worker = keys.queued_task(pool, ""), keys.held(pool, ""), keys.worker(pool, "")
        flows, heads = keys.flows(pool, ""), keys.flow_heads(pool, "")
        line = keys.flow_queue(pool, "", "").removesuffix(":")  # class:tenant follow
        self.classes = _pairs(found.pop(keys.classes(pool), []))
        self.leases = _pairs(found.pop(keys.leases(pool), []))
        self.in_flight = _pairs(found.pop(keys.in_flight(pool), []))
        self.idle = _pairs(found.pop(keys.idle(pool), []))
        self.served = _pairs(found.pop(keys.served(pool), []))
        self.tasks: dict[str, dict[str, str]] = {}
        self.held: dict[str, list[str]] = {}
        self.workers: dict[str, dict[str, str]] = {}
        self.flows: dict[str, dict[str, str]] = {}
        self.flow_heads: dict[str, list[str]] = {}
        self.lines: dict[tuple[str, str], list[str]] = {}
        for key, values in found.items():
            if key.startswith(task):
                if "ended" not in values[::2]:  # else it is only known that it is over
                    self.tasks[key.removeprefix(task)] = _pairs(values)
            elif key.startswith(held):
                self.held[key.removeprefix(held)] = values
            elif key.startswith(worker):
                self.workers[key.removeprefix(worker)] = _pairs(values)
            elif key.startswith(flows):
                self.flows[key.removeprefix(flows)] = _pairs(values)
            elif key.startswith(heads):
                self.flow_heads[key.removeprefix(heads)] = [one[ARRIVAL_CHARS + 1 :] for one in values[::2]]
            elif key.startswith(line):
                class_name, _, tenant = key.removeprefix(line).partition(":")
                self.lines[class_name, tenant] = [one[ARRIVAL_CHARS + 1 :] for one in values[::2]]

    @property
    def flying(self) -> list[str]:
        """Name the tasks that are handed over or run."""
        return [task_id for task_id, one in self.tasks.items() if one["state"] != WAITING]

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing waits and nothing flies, and no trace of a task is left."""
        return not (self.tasks or self.leases or any(self.held.values()) or self.lines or self.in_flight)


@dataclass
class Account:
    """What a task's flow has paid for it so far."""

    paid_s: float = 0.0
    is_known: bool = True  # False: Redis forgot something on the way, or was told of it again after its end
    is_settled: bool = False


@dataclass
class RedisRules:
    """Compares the state of each pool before and after every script."""

    dump: Callable[[str], str]
    violate: Violate
    views: dict[str, View] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=lambda: defaultdict(Account))

    def lost(self, pools: Iterable[str]) -> None:
        """Redis has lost something: what was paid until now cannot be told any more."""
        for account in self.accounts.values():
            account.is_known = False
        for pool in pools:
            view = self.views[pool] = View(pool, self.dump(pool))
            for task_id in view.tasks:
                self.accounts[task_id].is_known = False

    def ran(self, pool: str, script: str, answer: Any, dump: str) -> None:
        """Look at what a script has changed. `dump` is what Redis held right after it."""
        before = self.views.get(pool) or View(pool, "{}")
        view = self.views[pool] = View(pool, dump)
        self._check_counts(pool, script, view)
        self._check_yields(f"pool {pool} after {script}", view)
        if isinstance(answer, list) and script in HAND_OVERS:
            self._check_dispatch(view, str(answer[0]), str(answer[4]))
        self._count_payments(script, before, view)

    def _check_counts(self, pool: str, script: str, view: View) -> None:
        flying, where = view.flying, f"pool {pool} after {script}"
        if sorted(flying) != sorted(view.leases):
            self.violate("what flies has a lease, and nothing else", f"{where}: {flying} / {sorted(view.leases)}")
        held = Counter(task_id for tasks in view.held.values() for task_id in tasks)
        if sorted(held.elements()) != sorted(flying):
            self.violate("what flies takes one slot", f"{where}: {dict(held)} / {flying}")
        lined = Counter(task_id for tasks in view.lines.values() for task_id in tasks)
        waiting = [task_id for task_id, one in view.tasks.items() if one["state"] == WAITING]
        if sorted(lined.elements()) != sorted(waiting):
            self.violate("what waits stands in one line", f"{where}: {dict(lined)} / {waiting}")
        by_tenant = Counter(view.tasks[task_id]["tenant"] for task_id in flying)
        counted = {name[2:]: int(n) for name, n in view.in_flight.items() if name.startswith("n:")}
        if counted != dict(by_tenant):
            self.violate("tenants' counts are true", f"{where}: {counted} / {dict(by_tenant)}")
        for name, values in (("classes", view.classes), *view.flows.items()):
            mine = [one for one in view.tasks.values() if name in ("classes", one["class"])]
            num_flying = sum(1 for one in mine if one["state"] != WAITING)
            expected = (len(mine) - num_flying, num_flying)
            found = (int(values.get("num_waiting", 0)), int(values.get("num_in_flight", 0)))
            if found != expected:
                self.violate("counts are true", f"{where}: {name} says {found}, there are {expected}")
            waiting_ms = sum(int(f"{float(one['cost']) * 1000:.0f}") for one in mine if one["state"] == WAITING)
            if name != "classes" and int(values.get("backlog_ms", 0)) != waiting_ms:
                self.violate("the backlog is true", f"{where}: {name} {values.get('backlog_ms')} ms, not {waiting_ms}")
            for field_name, value in values.items():
                if (field_name == "v" or field_name.startswith("F:")) and not math.isfinite(float(value)):
                    self.violate("tags are numbers", f"{where}: {name} {field_name} = {value}")
        for (class_name, tenant), tasks in view.lines.items():
            cap = int(view.in_flight.get(f"cap:{tenant}", 0))
            if tasks and (not cap or by_tenant[tenant] < cap) and tenant not in view.flow_heads.get(class_name, ()):
                self.violate("whoever may run stands at the head", f"{where}: {class_name} {tenant}")

    def _check_yields(self, where: str, view: View) -> None:
        for task_id, one in view.tasks.items():
            heir, victim = view.tasks.get(one.get("yields_to", "")), view.tasks.get(one.get("victim", ""))
            if "yields_to" in one and (heir is None or heir["state"] != WAITING or heir.get("victim") != task_id):
                self.violate("whoever makes way does so for one that waits", f"{where}: {task_id} for {heir}")
            if "victim" in one and (victim is None or victim.get("yields_to") != task_id):
                self.violate("one open yield per waiting task", f"{where}: {task_id} and {victim}")

    def _check_dispatch(self, view: View, task_id: str, worker_id: str) -> None:
        tenant = view.tasks[task_id]["tenant"]
        cap, num_flying = int(view.in_flight.get(f"cap:{tenant}", 0)), int(view.in_flight.get(f"n:{tenant}", 0))
        if cap and num_flying > cap:
            self.violate("no tenant exceeds its cap", f"{tenant}: {num_flying} of {cap}")
        num_slots, num_held = int(view.workers[worker_id]["slots"]), len(view.held[worker_id])
        if num_held > num_slots:
            self.violate("no worker gets more than its slots", f"{worker_id}: {num_held} of {num_slots}")
        if view.workers[worker_id]["drained"] == "1":
            self.violate("whoever is drained gets no more work", f"{worker_id}: {task_id}")

    def _count_payments(self, script: str, before: View, after: View) -> None:
        landed: dict[tuple[str, str], list[str]] = defaultdict(list)
        charged: dict[tuple[str, str], list[str]] = defaultdict(list)
        for task_id in {**before.tasks, **after.tasks}:
            old, new = before.tasks.get(task_id), after.tasks.get(task_id)
            account = self.accounts[task_id]
            if new is None:
                account.is_settled = True
            elif old is None and account.is_settled:
                account.is_known = False  # late news of a task that is over: it is handed out once more, in vain
            was_flying = old is not None and old["state"] != WAITING
            is_flying = new is not None and new["state"] != WAITING
            one = new or old or {}
            ran_unseen = (
                old is not None
                and old["state"] == WAITING
                and (new is None or int(new["attempt"]) > int(old["attempt"]))
            )
            if (was_flying or ran_unseen) and not is_flying:
                landed[one["class"], one["tenant"]].append(task_id)
            elif is_flying and not was_flying:
                charged[one["class"], one["tenant"]].append(task_id)
        for flow, task_ids in charged.items():
            for task_id in task_ids:
                one = after.tasks[task_id]
                if one.get("prepaid") == "1":
                    self.accounts[task_id].is_known = False
                else:
                    self.accounts[task_id].paid_s += float(one["charged"])
            if flow in landed:
                self._unknown(landed.pop(flow))
        for (class_name, tenant), task_ids in landed.items():
            if len(task_ids) > 1:
                self._unknown(task_ids)
                continue
            old_tag, new_tag = (view.flows.get(class_name, {}).get(f"F:{tenant}") for view in (before, after))
            served = f"served:{class_name}:{tenant}"
            account, old_served, new_served = (
                self.accounts[task_ids[0]],
                before.served.get(served),
                after.served.get(served),
            )
            if old_tag is not None and new_tag is not None:
                flow_weight = before.flows[class_name].get(f"weight:{tenant}", 1)
                weight = float(before.tasks[task_ids[0]].get("weight", flow_weight))
                account.paid_s -= (float(old_tag) - float(new_tag)) * weight
            elif old_served is not None and new_served is not None:  # the tags of an idle class are forgotten
                account.paid_s -= (int(old_served) - int(new_served)) / 1000
            else:
                account.is_known = False
        for class_name, flows in after.flows.items():
            for name, value in flows.items():
                key = (class_name, name[2:])
                old_value = before.flows.get(class_name, {}).get(name)
                is_tag = name.startswith("F:") and key not in landed and key not in charged
                if is_tag and old_value is not None and float(old_value) != float(value):
                    self.violate("nobody pays for others", f"{script}: {class_name} {name}: {old_value} -> {value}")

    def _unknown(self, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            self.accounts[task_id].is_known = False

    def check_end(self, sql: SqlRules) -> int:
        """All attempts of a task together have paid one undisturbed run. Returns how many were compared."""
        num_compared = 0
        for task_id, row in sql.tasks.items():
            account = self.accounts.get(task_id)
            if account is None or not account.is_known or row["stage"] != "generate":
                continue
            num_compared += 1
            least_s, most_s = sql.due_s(row)
            if not least_s - PAID_WITHIN_S <= account.paid_s <= most_s + PAID_WITHIN_S:
                details = f"{task_id}: paid {account.paid_s}, due {least_s} to {most_s}"
                self.violate("all attempts together pay one run", details)
        return num_compared
