"""Where waiting tasks stand and when they may be done: the line of a pool, played through once for all of them.

The order is that of the scripts (two levels of start-time fair queueing, caps, ties by arrival) when nothing new
arrives and every task costs what it is estimated at.
"""

import heapq
from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import count

MAX_DISPATCHES = 10_000  # played through; whoever comes after these has no place yet
NO_TIME_S = -1.0  # nobody knows: no worker is there


@dataclass(frozen=True)
class WaitingTask:
    """A task in the line of its flow."""

    task_id: str
    arrival: str
    cost_s: float


@dataclass(frozen=True)
class WaitingFlow:
    """A tenant in a class: its next tasks in order, and how many more there are that cost how much together."""

    tenant_id: str
    weight: float
    cap: int  # tasks of the pool at once, 0 = none
    start_tag: float
    tasks: tuple[WaitingTask, ...]
    num_more: int = 0
    more_s: float = 0.0


@dataclass(frozen=True)
class WaitingClass:
    """A class and its flows."""

    name: str
    weight: float
    virtual_time: float
    start_tag: float
    flows: tuple[WaitingFlow, ...]


@dataclass(frozen=True)
class RunningTask:
    """A task in flight, the seconds that it takes yet, and whether its slot is given to another one then."""

    tenant_id: str
    left_s: float
    frees_slot: bool = True


@dataclass(frozen=True)
class Line:
    """A pool as it is now: slots that are given work, those of them that are free, classes, tasks in flight."""

    num_slots: int
    num_free: int
    group_size: int
    virtual_time: float
    classes: tuple[WaitingClass, ...]
    running: tuple[RunningTask, ...]


@dataclass(frozen=True)
class Forecast:
    """Tasks that are handed out before this one, and seconds until it may be done."""

    position: int
    eta_s: float


def with_one_more(line: Line, class_name: str, tenant_id: str, share: tuple[float, int], task: WaitingTask) -> Line:
    """Return the line as it were if a task joined it behind its tenant's others.

    `share` is the tenant's weight and cap, for one that has nothing waiting in that class.
    """

    def joined(one: WaitingClass) -> WaitingClass:
        flow = next((each for each in one.flows if each.tenant_id == tenant_id), None)
        if flow is None:
            weight, cap = share
            return replace(one, flows=(*one.flows, WaitingFlow(tenant_id, weight, cap, one.virtual_time, (task,))))
        last = flow.tasks[-1].arrival if flow.tasks else ""
        num_more = min(flow.num_more, MAX_DISPATCHES)  # behind so many it has no place
        more = (WaitingTask("", last, flow.more_s / flow.num_more),) * num_more if num_more else ()
        longer = replace(flow, tasks=(*flow.tasks, *more, task), num_more=0, more_s=0.0)
        return replace(one, flows=tuple(longer if each is flow else each for each in one.flows))

    return replace(line, classes=tuple(joined(one) if one.name == class_name else one for one in line.classes))


def forecast(line: Line) -> dict[str, Forecast]:
    """Play a line through; tasks that it names get their places, in that order; what nothing lets run is left out."""
    pool = _Pool(line)
    num_named = sum(bool(task.task_id) for each in line.classes for flow in each.flows for task in flow.tasks)
    num_free = line.num_free if line.num_slots else 1  # without a worker there is an order, but no time
    ends = [(task.left_s, task.tenant_id, task.frees_slot) for task in line.running]
    heapq.heapify(ends)
    found: dict[str, Forecast] = {}
    now_s, position = 0.0, 0
    while len(found) < num_named and position < MAX_DISPATCHES:
        turn = pool.dispatch() if num_free > 0 else None
        if turn is not None:
            tenant_id, task = turn
            end_s = now_s + task.cost_s / line.group_size
            heapq.heappush(ends, (end_s, tenant_id, True))
            if task.task_id:
                found[task.task_id] = Forecast(position, end_s if line.num_slots else NO_TIME_S)
            position += 1
            num_free -= 1
        elif ends:
            now_s, tenant_id, frees_slot = heapq.heappop(ends)
            num_free += frees_slot
            pool.end(tenant_id)
        else:
            break
    return found


NO_SEAT = -1


class _Flow:
    """A flow while the line is played: `start` is its tag, valid while it has a seat among the heads."""

    def __init__(self, flow: WaitingFlow) -> None:
        self.tenant_id, self.weight, self.cap = flow.tenant_id, flow.weight, flow.cap
        self.start = flow.start_tag
        self.seat = NO_SEAT
        self._tasks = deque(flow.tasks)
        self._num_more = flow.num_more
        last = flow.tasks[-1].arrival if flow.tasks else ""
        self._more = WaitingTask("", last, flow.more_s / flow.num_more) if flow.num_more else None

    @property
    def head(self) -> WaitingTask | None:
        return self._tasks[0] if self._tasks else self._more

    def pop(self) -> WaitingTask:
        """Take the head away; there must be one."""
        if self._tasks:
            return self._tasks.popleft()
        more = self._more
        if more is None:
            raise IndexError(f"nothing waits in the flow of {self.tenant_id}")
        self._num_more -= 1
        self._more = more if self._num_more else None
        return more


class _Class:
    """A class while the line is played, and its eligible flows by start tag, then arrival.

    A flow that leaves its seat only loses the number of it; the entry goes when it comes to the top.
    """

    def __init__(self, given: WaitingClass) -> None:
        self.weight, self.start, self.v = given.weight, given.start_tag, given.virtual_time
        self.num_seated = 0
        self._heads: list[tuple[float, str, int, _Flow]] = []
        self._seats = count()

    def take_seat(self, flow: _Flow, head: WaitingTask) -> None:
        flow.seat = next(self._seats)
        self.num_seated += 1
        heapq.heappush(self._heads, (flow.start, head.arrival, flow.seat, flow))

    def leave_seat(self, flow: _Flow) -> None:
        flow.seat = NO_SEAT
        self.num_seated -= 1

    def first_arrival(self) -> str:
        """Return when the task arrived whose turn it is; some flow must be seated."""
        while self._heads[0][2] != self._heads[0][3].seat:
            heapq.heappop(self._heads)
        return self._heads[0][1]

    def pop(self) -> _Flow:
        """Take the flow whose turn it is away; `first_arrival` was asked just before."""
        flow = heapq.heappop(self._heads)[3]
        self.leave_seat(flow)
        return flow


class _Pool:
    """Both levels of a pool."""

    def __init__(self, line: Line) -> None:
        self._v = line.virtual_time
        self._num_in_flight = Counter(task.tenant_id for task in line.running)
        self._classes = [_Class(given) for given in line.classes]
        self._flows: dict[str, list[tuple[_Class, _Flow]]] = {}
        for one, given in zip(self._classes, line.classes, strict=True):
            for waiting in given.flows:
                flow = _Flow(waiting)
                self._flows.setdefault(flow.tenant_id, []).append((one, flow))
                self._stand(one, flow)

    def dispatch(self) -> tuple[str, WaitingTask] | None:
        """Take the task whose turn it is; None when nothing is eligible."""
        seated = [one for one in self._classes if one.num_seated]
        if not seated:
            return None
        turn = min(seated, key=lambda one: (one.start, one.first_arrival()))
        flow = turn.pop()
        task = flow.pop()
        turn.v, self._v = max(turn.v, flow.start), max(self._v, turn.start)
        flow.start += task.cost_s / flow.weight
        turn.start += task.cost_s / turn.weight
        self._num_in_flight[flow.tenant_id] += 1
        if self._is_capped(flow):
            self._close(flow.tenant_id)
        else:
            self._stand(turn, flow)
        return flow.tenant_id, task

    def end(self, tenant_id: str) -> None:
        """Let a task in flight be done: its tenant may be below its cap again, and its flows come back to the heads."""
        self._num_in_flight[tenant_id] -= 1
        for one, flow in self._flows.get(tenant_id, ()):
            if flow.head is not None and flow.seat == NO_SEAT and not self._is_capped(flow):
                flow.start = max(one.v, flow.start)
                if not one.num_seated:
                    one.start = max(self._v, one.start)
                self._stand(one, flow)

    def _is_capped(self, flow: _Flow) -> bool:
        return bool(flow.cap) and self._num_in_flight[flow.tenant_id] >= flow.cap

    def _stand(self, one: _Class, flow: _Flow) -> None:
        head = flow.head
        if head is not None and not self._is_capped(flow):
            one.take_seat(flow, head)

    def _close(self, tenant_id: str) -> None:
        """Take the flows of a tenant that has reached its cap away from all heads."""
        for one, flow in self._flows[tenant_id]:
            if flow.seat != NO_SEAT:
                one.leave_seat(flow)
