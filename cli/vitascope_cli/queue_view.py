"""What `vitascope queue` shows: each pool's shares, workers and leases."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vitascope_cli.progress import duration
from vitascope_common.errors import ConfigurationError

REFRESH_S = 2.0
MAX_WORKER_CHARS = 16
LONG = frozenset({"tenant", "tenant, class", "models"})
"""Columns that share what a narrow terminal leaves, over several lines."""

Pool = Mapping[str, Any]
"""One pool, as the API gives it."""


def show(read: Callable[[], Sequence[Pool]], console: Console, *, is_json: bool, is_watching: bool) -> None:
    """Print what `read` returns, once or every 2 s until Ctrl-C: in place on a terminal, else one after the other."""
    if is_watching and console.is_terminal and not is_json:
        with Live(render(read()), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(REFRESH_S)
                live.update(render(read()), refresh=True)
    while True:
        pools = read()
        if is_json:
            console.file.write(json.dumps(pools) + "\n")
            console.file.flush()
        else:
            console.print(render(pools), highlight=False)
        if not is_watching:
            return
        time.sleep(REFRESH_S)


def render(pools: Sequence[Pool]) -> RenderableType:
    """Return the tables of every pool."""
    parts: list[RenderableType] = []
    for pool in pools:
        parts += [_heading(pool), _shares(pool)]
        if pool["workers"]:
            parts.append(_workers(pool["workers"]))
        if pool["leases"]:
            parts.append(_leases(pool["leases"]))
            parts += _more(pool["num_in_flight"] - len(pool["leases"]), "in flight")
        parts.append(Text())
    return Group(*parts) if parts else Text("There are no pools yet: no worker has come and no job was asked for.")


def pool_of(pools: Sequence[Pool], worker_id: str | None) -> str:
    """Return the pool that is meant when none is named: that of the worker, else the only one that has workers.

    Raises:
        ConfigurationError: it is not clear which.
    """
    if worker_id is None:
        found = [str(pool["pool"]) for pool in pools if pool["workers"]]
    else:
        found = [str(pool["pool"]) for pool in pools if any(one["worker_id"] == worker_id for one in pool["workers"])]
    if len(found) != 1:
        what = f"has a worker {worker_id}" if worker_id else "has workers"
        known = ", ".join(str(pool["pool"]) for pool in pools) or "none"
        raise ConfigurationError(f"{'More than one' if found else 'No'} pool {what}; name it with --pool ({known}).")
    return found[0]


def _heading(pool: Pool) -> Text:
    text = Text(f"Pool {pool['pool']}", style="bold")
    facts = f": {pool['num_waiting']} waiting ({_gpu(pool['backlog_s'])}), {pool['num_in_flight']} in flight"
    text.append(f"{facts}, virtual time {pool['virtual_time']:.2f}", style="not bold")
    if pool["is_draining"]:
        text.append("  draining", style="yellow")
    return text


def _shares(pool: Pool) -> Table:
    table = _table("class", "tenant", "weight", "waiting", "in flight", "backlog", "served", "entitled", "start tag")
    for class_ in pool["classes"]:
        table.add_row(class_["class_name"], f"V {class_['virtual_time']:.2f}", *_share(class_), style="bold")
        for flow in class_["flows"]:
            table.add_row("", Text(flow["tenant_id"]), *_share(flow))
        for rest in _more(class_["num_waiting"] - sum(flow["num_waiting"] for flow in class_["flows"]), "waiting"):
            table.add_row("", rest)
    return table


def _share(node: Mapping[str, Any]) -> list[str]:
    cap = f" of {node['cap']}" if node.get("cap") else ""
    return [
        f"{node['weight']:g}" if node["weight"] else "-",  # of a flow that was forgotten
        str(node["num_waiting"]),
        f"{node['num_in_flight']}{cap}",
        _gpu(node["backlog_s"]),
        _gpu(node["served_s"]),
        _gpu(node["entitled_s"]),
        f"{node['start_tag']:.2f}",
    ]


def _workers(workers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("worker", "device", "free slots", "models", "expires", "")
    for one in workers:
        device = one["device"] if one["group_size"] == 1 else f"{one['device']} x {one['group_size']}"
        state = Text("draining", style="yellow") if one["is_draining"] else Text()
        slots = f"{one['num_free_slots']} of {one['num_slots']}"
        models, expires = ", ".join(one["warm_models"]), duration(max(0, one["expires_in_ms"]) / 1000)
        table.add_row(Text(one["worker_id"]), Text(device), slots, Text(models), expires, state)
    return table


def _leases(leases: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("lease", "tenant, class", "worker", "state", "try", "GPU-s", "expires")
    for one in leases:
        worker = one["worker_id"]  # listed above in full
        short = worker if len(worker) <= MAX_WORKER_CHARS else f"…{worker[1 - MAX_WORKER_CHARS :]}"
        names = [Text(one["task_id"]), Text(f"{one['tenant_id']}, {one['class_name']}"), Text(short)]
        state, expires = one["state"].replace("_", " "), duration(max(0, one["expires_in_ms"]) / 1000)
        table.add_row(*names, state, str(one["attempt"]), f"{one['charged_s']:.1f}", expires)
    return table


def _more(num: int, what: str) -> list[Text]:
    """Say how many there are beyond those that the API lists, as far as its sums tell."""
    return [Text(f"… {num} more {what}", style="dim")] if num > 0 else []


def _table(*titles: str) -> Table:
    table = Table(*titles, box=None, pad_edge=False, header_style="dim")
    for column, title in zip(table.columns, titles, strict=True):
        column.no_wrap = title not in LONG or column is table.columns[0]
        column.min_width, column.overflow = len(title), "fold"
    return table


def _gpu(seconds: float) -> str:
    return f"{seconds:.1f} GPU-s"
