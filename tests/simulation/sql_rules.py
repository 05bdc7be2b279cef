"""What must hold of SQL after each commit, and of what is answered."""

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitascope_common.jobs import (
    JOB_TRANSITIONS,
    MAX_READY_SHARDS,
    TASK_TRANSITIONS,
    TERMINAL_JOB,
    TERMINAL_TASK,
    JobState,
    TaskState,
)
from vitascope_scheduler.endings import EXPIRED

Violate = Callable[[str, str], None]
Say = Callable[..., None]
Row = Mapping[str, Any]

_COLUMNS = {
    "jobs": "job_id, kind, state, version, manifest_key, finished_at_ms, error_code, deadline_at_ms",
    "tasks": "task_id, job_id, pool, stage, state, attempt, worker_id, num_failures, used_s, cost_s, checkpoints, "
    "outputs, num_needed, total, publishes",
    "ledger": "task_id, attempt, outcome, used_s",
}


def _changes(before: Row, after: Row, *names: str) -> list[str]:
    return [name for name in names if before[name] != after[name]]


@dataclass
class SqlRules:
    """Compares every commit with the one before."""

    connection: sqlite3.Connection
    violate: Violate
    say: Say
    acknowledged: set[str] = field(default_factory=set)  # jobs that a client was promised
    jobs: dict[str, Row] = field(default_factory=dict)
    tasks: dict[str, Row] = field(default_factory=dict)
    ledger: dict[tuple[str, int], Row] = field(default_factory=dict)
    ended_at: dict[tuple[str, int], int] = field(default_factory=dict)  # attempt -> number of the commit that ended it
    done_at_claim: dict[str, int] = field(default_factory=dict)  # what survived when the newest attempt began
    ended_from: dict[str, str] = field(default_factory=dict)  # state of a task before its terminal one
    used_at_cancel: dict[str, float] = field(default_factory=dict)  # of tasks whose worker said more afterwards
    computed_s: dict[tuple[str, int], float] = field(default_factory=dict)
    num_commits: int = 0
    seen: Counter[str] = field(default_factory=Counter)  # what happened, for the summary

    def _read(self, table: str) -> list[Row]:
        cursor = self.connection.execute(f"SELECT {_COLUMNS[table]} FROM {table}")
        names = [one[0] for one in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def num_outbox(self) -> int:
        """Count what is still to be told."""
        return int(self.connection.execute("SELECT count(*) FROM outbox").fetchone()[0])

    def committed(self, who: str) -> None:
        """Look at what a commit has changed."""
        self.num_commits += 1
        jobs = {row["job_id"]: row for row in self._read("jobs")}
        tasks = {row["task_id"]: row for row in self._read("tasks")}
        ledger = {(row["task_id"], row["attempt"]): row for row in self._read("ledger")}
        if len(ledger) != len(self.ledger) or ledger != self.ledger:
            self._compare_ledger(who, tasks, ledger)
        for task_id, after in tasks.items():
            before = self.tasks.get(task_id)
            if before is not None and before != after:
                self._compare_task(who, before, after)
        for job_id, after in jobs.items():
            before = self.jobs.get(job_id)
            if before is None:
                self.say(who, "sql", f"{job_id} admitted")
            elif before != after:
                self._compare_job(who, before, after, tasks)
        fresh = Counter(
            row["job_id"] for row in tasks.values() if row["state"] == TaskState.READY and not row["attempt"]
        )
        for job_id, num_ready in fresh.items():
            if num_ready > MAX_READY_SHARDS:
                self.violate("few shards are ready at once", f"{job_id}: {num_ready}")
        for job_id in self.jobs:
            if job_id not in jobs:
                self.violate("a job never vanishes", job_id)
        self.jobs, self.tasks, self.ledger = jobs, tasks, ledger

    def _compare_job(self, who: str, before: Row, after: Row, tasks: Mapping[str, Row]) -> None:
        job_id, old, new = after["job_id"], before["state"], after["state"]
        if old != new:
            self.say(who, "sql", f"{job_id} {old} -> {new}", after["error_code"] or "")
            if new in TERMINAL_JOB:
                self.seen[f"job {new} {after['error_code'] or ''}".strip()] += 1
            if JobState(new) not in JOB_TRANSITIONS[JobState(old)]:
                self.violate("a job has one terminal state", f"{job_id}: {old} -> {new}")
        is_expired = old != new and after["error_code"] == EXPIRED
        if is_expired and after["finished_at_ms"] < (after["deadline_at_ms"] or math.inf):
            self.violate("no job expires before its deadline", f"{job_id}: {dict(after)}")
        if old in TERMINAL_JOB and _changes(before, after, "version", "manifest_key", "finished_at_ms", "error_code"):
            self.violate("a terminal job stays as it is", f"{job_id}: {dict(before)} -> {dict(after)}")
        if after["version"] < before["version"]:
            self.violate("versions ascend", f"{job_id}: {before['version']} -> {after['version']}")
        if new in TERMINAL_JOB and old != new:
            mine = [row for row in tasks.values() if row["job_id"] == job_id]
            still_open = [row["task_id"] for row in mine if row["state"] not in TERMINAL_TASK]
            if still_open:
                self.violate("a job that is over has no open task", f"{job_id}: {still_open}")
            if new == JobState.COMPLETED:
                self._check_published(after, mine)

    def _check_published(self, job: Row, tasks: list[Row]) -> None:
        undone = [row["task_id"] for row in tasks if row["state"] != TaskState.DONE]
        if undone:
            self.violate("a completed job has done all tasks", f"{job['job_id']}: {undone}")
        named = {
            artifact["key"]
            for row in tasks
            if row["publishes"]
            for artifact in json.loads(row["outputs"])
            if artifact["role"] == "manifest"
        }
        if named != {job["manifest_key"]}:
            self.violate("one published artifact set per job", f"{job['job_id']}: {job['manifest_key']} of {named}")

    def _compare_task(self, who: str, before: Row, after: Row) -> None:
        task_id, old, new, attempt = after["task_id"], before["state"], after["state"], after["attempt"]
        rises = attempt - before["attempt"]
        if (old, before["attempt"]) != (new, attempt):
            worker = after["worker_id"] or before["worker_id"] or ""
            self.say(who, "sql", f"{task_id} {old} -> {new} attempt {attempt}", worker)
        if old != new and TaskState(new) not in TASK_TRANSITIONS[TaskState(old)]:
            self.violate("task transitions", f"{task_id}: {old} -> {new}")
        if rises not in (0, 1) or (rises == 1) != ((old, new) == (TaskState.READY, TaskState.LEASED)):
            self.violate(
                "attempts rise through claim alone", f"{task_id}: {before['attempt']} {old} -> {attempt} {new}"
            )
        if rises == 1:
            checkpoints = json.loads(after["checkpoints"])
            self.done_at_claim[task_id] = checkpoints[0]["done"] if checkpoints else 0
        if old not in TERMINAL_TASK and new in TERMINAL_TASK:
            self.ended_from[task_id] = old
        if old == TaskState.LEASED and new != TaskState.LEASED:
            self.ended_at[task_id, attempt] = self.num_commits
        if old == new == TaskState.LEASED and before["worker_id"] != after["worker_id"]:
            self.violate("one attempt, one worker", f"{task_id}: {before['worker_id']} -> {after['worker_id']}")
        if before["checkpoints"] != after["checkpoints"]:
            self._check_record(before, after)
        if before["outputs"] != after["outputs"]:
            if (old, new) != (TaskState.LEASED, TaskState.DONE):
                self.violate("outputs of the done attempt alone", f"{task_id}: {old} -> {new}")
            self._check_made_by(before, after, json.loads(after["outputs"]))
        if old == new == TaskState.LEASED and after["used_s"] < before["used_s"]:
            self.violate("what was used never shrinks", f"{task_id}: {before['used_s']} -> {after['used_s']}")
        is_late_charge = self._is_late_charge(before, after)
        if is_late_charge:
            self.used_at_cancel.setdefault(task_id, before["used_s"])
        if before["used_s"] != after["used_s"] and TaskState.LEASED not in (old, new) and not is_late_charge:
            self.violate("only the running attempt writes", f"{task_id}: used_s while {old}")
        fixed = ("attempt", "outputs", "checkpoints", "worker_id", *(() if is_late_charge else ("used_s",)))
        if old in TERMINAL_TASK and _changes(before, after, *fixed):
            self.violate("a terminal task stays as it is", f"{task_id}: {dict(before)} -> {dict(after)}")

    def _is_late_charge(self, before: Row, after: Row) -> bool:
        """Tell whether the report of an attempt that was cancelled under its worker says that it used more."""
        is_meant = before["state"] == after["state"] == TaskState.CANCELLED and before["attempt"] == after["attempt"]
        was_running = self.ended_from.get(after["task_id"]) == TaskState.LEASED
        return is_meant and was_running and after["used_s"] > before["used_s"]

    def _check_record(self, before: Row, after: Row) -> None:
        old, new = json.loads(before["checkpoints"]), json.loads(after["checkpoints"])
        if before["state"] != TaskState.LEASED:
            self.violate("only the running attempt records", f"{after['task_id']} in state {before['state']}")
        for one in new:
            if one not in old:
                self.say("", "sql", f"{after['task_id']} checkpoint {one['done']} of attempt {one['attempt']}")
                self._check_made_by(before, after, one["artifacts"])
                if one["attempt"] != before["attempt"]:
                    self.violate("only the running attempt records", f"{after['task_id']}: {one}")

    def _check_made_by(self, before: Row, after: Row, artifacts: Iterable[Row]) -> None:
        for artifact in artifacts:
            is_its_attempt = artifact["key"].split("/")[-2] == str(after["attempt"])
            if not is_its_attempt or artifact["name"] != before["worker_id"]:
                self.violate(
                    "no write by an older attempt",
                    f"{after['task_id']} attempt {after['attempt']} of {before['worker_id']}: {artifact['key']} of "
                    f"{artifact['name']}",
                )

    def _compare_ledger(self, who: str, tasks: Mapping[str, Row], ledger: Mapping[tuple[str, int], Row]) -> None:
        for key, row in self.ledger.items():
            if ledger.get(key) != row and not self._is_charged_late(key, row, ledger.get(key), tasks):
                self.violate("the ledger is never rewritten", f"{key}: {row} -> {ledger.get(key)}")
        num_rows = Counter(task_id for task_id, _ in ledger)
        for key, row in ledger.items():
            if key in self.ledger:
                continue
            task_id, attempt = key
            self.say(who, "sql", f"{task_id} attempt {attempt} charged {row['used_s']:.2f} s: {row['outcome']}")
            self.seen[f"attempt {row['outcome']}"] += 1
            before, after = self.tasks.get(task_id), tasks[task_id]
            if before is None or before["state"] != TaskState.LEASED or before["attempt"] != attempt:
                self.violate("an attempt is charged when it ends", f"{key}: {before}")
            num_ended = after["attempt"] - (after["state"] == TaskState.LEASED)
            if num_rows[task_id] != num_ended:
                self.violate("one ledger row per attempt", f"{task_id}: {num_rows[task_id]} of {num_ended}")
            if row["used_s"] > self.computed_s.get(key, 0.0) + 1e-6:
                self.violate("nobody pays for what never ran", f"{key}: {row['used_s']} of {self.computed_s.get(key)}")

    def _is_charged_late(self, key: tuple[str, int], before: Row, after: Row | None, tasks: Mapping[str, Row]) -> bool:
        """Tell whether a row of the ledger rose together with its task, and to no more than what ran."""
        if after is None or _changes(before, after, "outcome") or before["outcome"] != "cancelled":
            return False
        old, new = self.tasks[key[0]], tasks[key[0]]
        is_same = new["attempt"] == key[1] and self._is_late_charge(old, new) and after["used_s"] == new["used_s"]
        return is_same and after["used_s"] <= self.computed_s.get(key, 0.0) + 1e-6

    def answered_run(self, task_id: str, attempt: int, since_commit: int) -> None:
        """A heartbeat was told to go on: then this attempt held the task at some time since the call began."""
        row, ended = self.tasks[task_id], self.ended_at.get((task_id, attempt))
        holds = row["state"] == TaskState.LEASED and row["attempt"] == attempt
        if not holds and (ended is None or ended <= since_commit):
            self.violate(
                "no zombie goes on", f"{task_id} attempt {attempt} was told to run, {row['attempt']} is newest"
            )

    def answered_report(self, task_id: str, attempt: int, outcome: str, is_accepted: bool) -> None:
        """A report was accepted: then this attempt ended that way."""
        row = self.ledger.get((task_id, attempt))
        if is_accepted and (row is None or row["outcome"] != outcome):
            self.violate("no zombie's report is accepted", f"{task_id} attempt {attempt} {outcome}: {row}")

    def answered_claim(self, task_id: str, attempt: int, worker_id: str, since_commit: int) -> None:
        """A claim was granted: then this worker held that attempt at some time since the call began."""
        row, ended = self.tasks[task_id], self.ended_at.get((task_id, attempt))
        holds = (row["state"], row["attempt"], row["worker_id"]) == (TaskState.LEASED, attempt, worker_id)
        if not holds and (ended is None or ended <= since_commit):
            self.violate("one attempt, one worker", f"{task_id} attempt {attempt} was granted to {worker_id}")

    def due_s(self, row: Row) -> tuple[float, float]:
        """Return what all attempts of a task that is over owe together, at least and at most.

        One that is stopped owes the time that it had its slot, though no more than what it was charged. What its worker
        says later than Redis has settled it is in the ledger alone.
        """
        checkpoints = json.loads(row["checkpoints"])
        is_running = self.ended_from.get(row["task_id"]) == TaskState.LEASED
        survived = self.done_at_claim[row["task_id"]] if is_running else checkpoints[0]["done"] if checkpoints else 0
        share = survived / row["total"]
        survived_s, left_s = float(row["cost_s"] * share), float(row["cost_s"] * (1 - share))
        used_s = float(row["used_s"]) if is_running else 0.0
        if is_running and row["state"] == TaskState.CANCELLED:
            early_s = float(self.used_at_cancel.get(row["task_id"], used_s))
            return survived_s + min(early_s, left_s), survived_s + max(used_s, left_s)
        return survived_s + used_s, survived_s + used_s

    def check_end(self) -> None:
        """Look at the whole once everything is over."""
        for job_id in self.acknowledged:
            if job_id not in self.jobs:
                self.violate("an acknowledged job is never lost", job_id)
        for task_id, row in self.tasks.items():
            num_rows = sum(1 for key in self.ledger if key[0] == task_id)
            if num_rows != row["attempt"]:
                self.violate("one ledger row per attempt", f"{task_id}: {num_rows} of {row['attempt']}")
