"""The arithmetic of the benchmarks, and the simulated pool they run on."""

import asyncio
import json
import random
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tests.bench import plot
from tests.bench.figures import Figure, table, write
from tests.bench.pool import Fifo, Job, RoundRobin, Served, serve
from tests.bench.service import consumed_s, gap, jain, percentile


def served(tenant: str, begun_s: float, length_s: float) -> Served:
    return Served(Job(f"{tenant}{begun_s}", tenant, 0.0, length_s, length_s), begun_s)


class TestService:
    def test_consumed_is_cut_at_both_ends(self) -> None:
        jobs = [served("a", 0, 10), served("b", 0, 100), served("a", 20, 10)]
        assert consumed_s(jobs, "a", 5, 25) == 10
        assert consumed_s(jobs, "b", 5, 25) == 20
        assert consumed_s(jobs, "c", 5, 25) == 0

    def test_gap_of_two_in_turn(self) -> None:
        jobs = [served("a", 0, 10), served("b", 10, 20), served("a", 30, 10)]
        found = gap(jobs, {"a": 1.0, "b": 1.0}, 0, 40)
        assert (found.from_start_s, found.any_window_s) == (10, 20)  # +10, then -10, then 0

    def test_gap_counts_weights(self) -> None:
        jobs = [served("a", 0, 40), served("b", 0, 10)]
        assert gap(jobs, {"a": 4.0, "b": 1.0}, 0, 10).any_window_s == 7.5
        assert gap(jobs, {"a": 4.0, "b": 1.0}, 0, 40).any_window_s == 7.5  # 10 - 2.5, and 10 - 10 at the end

    def test_gap_forgets_what_was_before(self) -> None:
        jobs = [served("a", 0, 100), served("b", 100, 10), served("a", 110, 10)]
        found = gap(jobs, {"a": 1.0, "b": 1.0}, 100, 120)
        assert (found.from_start_s, found.any_window_s) == (10, 10)

    def test_gap_agrees_with_every_window_tried(self) -> None:
        random_ = random.Random(1)
        weights = {"a": 1.0, "b": 2.0, "c": 4.0}
        jobs = [served(random_.choice("abc"), random_.randrange(40), random_.randrange(1, 12)) for _ in range(24)]
        tried = max(
            abs(
                consumed_s(jobs, one, since_s, until_s) / weights[one]
                - consumed_s(jobs, other, since_s, until_s) / weights[other]
            )
            for since_s in range(4, 37)
            for until_s in range(since_s, 37)
            for one, other in ("ab", "ac", "bc")
        )
        assert gap(jobs, weights, 4, 36).any_window_s == pytest.approx(tried)

    def test_jain(self) -> None:
        assert jain([3.0, 3.0, 3.0]) == pytest.approx(1)
        assert jain([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)

    @pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.951, 96), (1.0, 100), (0.0, 1)])
    def test_percentile(self, share: float, expected: int) -> None:
        assert percentile([float(n) for n in range(100, 0, -1)], share) == expected


class TestPool:
    def test_no_server_waits_while_a_job_does(self) -> None:
        jobs = [Job(str(i), "a", 0.0, 10.0, 10.0) for i in range(5)] + [Job("late", "a", 100.0, 10.0, 10.0)]
        done = asyncio.run(serve(Fifo(), 2, jobs))
        assert [(one.job.name, one.begun_s) for one in done] == [
            ("0", 0), ("1", 0), ("2", 10), ("3", 10), ("4", 20), ("late", 100),
        ]  # fmt: skip
        assert done[-1].waited_s == 0

    def test_round_robin_takes_turns(self) -> None:
        jobs = [Job(f"{tenant}{i}", tenant, 0.0, 1.0, 1.0) for tenant in "abc" for i in range(1 + (tenant == "a"))]
        assert [one.job.name for one in asyncio.run(serve(RoundRobin(), 1, jobs))] == ["a0", "b0", "c0", "a1"]

    def test_the_last_and_the_next(self) -> None:
        def again(job: Job, now_s: float) -> Job:
            return Job(f"{job.name}+", job.tenant, now_s, job.length_s, job.cost_s)

        jobs = [Job("a", "a", 0.0, 10.0, 10.0)]
        done = asyncio.run(serve(Fifo(), 1, jobs, until_s=35.0, next_job=again))
        assert [one.begun_s for one in done] == [0, 10, 20, 30]
        done = asyncio.run(serve(Fifo(), 1, jobs, is_last=lambda one: one.job.name == "a+", next_job=again))
        assert [one.job.name for one in done] == ["a", "a+"]


class TestFigures:
    def test_what_is_better_decides(self, tmp_path: Path) -> None:
        lower, higher = Figure("m", 3.0, "s", 2.0, 1.5), Figure("m", 3.0, "s", 2.0, 1.6, "higher", {"other": 9.0})
        assert lower.is_met
        assert not higher.is_met
        assert [line.split()[-1] for line in table("x", [lower]).splitlines()][1:] == ["ok"]
        assert "MISSED  other 9" in table("x", [lower, higher])
        write(tmp_path / "x.json", [higher])
        (row,) = json.loads((tmp_path / "x.json").read_text())
        assert (row["ratio"], row["goal"], row["beside"]) == (1.5, 1.6, {"other": 9.0})

    def test_plot_puts_values_where_they_belong(self) -> None:
        panel = plot.Panel(
            "<p>", {name: [0.0, 0.5, 1.0] for name in "abcd"}, {name: [0.0, 0.0, 0.0] for name in "abcd"}
        )
        root = ElementTree.fromstring(plot.draw("t & u", [panel], [0.0, 1.0, 2.0], "hours"))
        lines = [one for one in root.iter("{http://www.w3.org/2000/svg}polyline") if one.get("class") == "served"]
        assert len(lines) == 4
        points = [tuple(map(float, point.split(","))) for point in lines[0].get("points", "").split()]
        assert points[0] == (plot.LEFT_PX, plot.HEIGHT_PX - plot.BOTTOM_PX)
        assert points[-1] == (plot.WIDTH_PX - plot.RIGHT_PX, plot.TOP_PX)
        assert all(b[0] - a[0] == pytest.approx((points[-1][0] - points[0][0]) / 2) for a, b in pairwise(points))
