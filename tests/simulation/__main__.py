"""Simulate the control plane: `python -m tests.simulation --seeds 1000`, or `--seed N` to replay one."""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from contextlib import nullcontext

from tests.simulation.planted import PLANTED, planted
from tests.simulation.run import Result, Stage, stage

NUM_LINES = 60
EVERY = 25


def main() -> int:
    """Run seeds until one violates an invariant: then 1, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--first", type=int, default=1, help="the first one (1)")
    parser.add_argument("--seed", type=int, help="replay this one and print its whole log")
    parser.add_argument("--trace", action="store_true", help="with --seed: every command that Redis gets, and logs")
    parser.add_argument("--calm", action="store_true", help="nothing goes wrong")
    parser.add_argument("--planted", choices=sorted(PLANTED), help="plant a bug; the status is 1 when it is found")
    arguments = parser.parse_args()
    with stage() as one, planted(arguments.planted) if arguments.planted else nullcontext():
        if arguments.seed is None:
            return _run(one, arguments)
        result = one.run(
            arguments.seed,
            on_say=lambda line: print(line, flush=True),
            is_calm=arguments.calm,
            is_traced=arguments.trace,
        )
        return _end(result)


def _run(one: Stage, arguments: argparse.Namespace) -> int:
    begun_s, begun_cpu_s, simulated_s, num_effects, num_compared = time.monotonic(), time.process_time(), 0.0, 0, 0
    seen: Counter[str] = Counter()
    for number in range(1, arguments.seeds + 1):
        result = one.run(arguments.first + number - 1, is_calm=arguments.calm, has_log=False)
        if result.violation:
            print("\n".join(result.log[-NUM_LINES:]))
            return _end(result)
        simulated_s, num_effects = simulated_s + result.simulated_s, num_effects + result.num_effects
        num_compared += result.num_compared
        seen += result.seen
        if number % EVERY == 0 or number == arguments.seeds:
            took_s, cpu_s = time.monotonic() - begun_s, time.process_time() - begun_cpu_s
            print(
                f"{number} seeds hold: {number / took_s:.2f} seeds/s ({number / cpu_s:.2f} per second of processor), "
                f"{simulated_s / took_s:.0f} x real time, {num_effects} effects, {num_compared} payments compared",
                flush=True,
            )
    print("seen: " + ", ".join(f"{count} {what}" for what, count in sorted(seen.items())))
    return 0


def _end(result: Result) -> int:
    if result.violation is None:
        print(f"seed {result.seed}: holds")
        return 0
    if result.violation.__cause__:
        traceback.print_exception(result.violation.__cause__)
    print(f"seed {result.seed}: {result.violation}")
    print(f"replay: python -m tests.simulation --seed {result.seed}")
    return 1


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a run
        command = [sys.executable, "-m", "tests.simulation", *sys.argv[1:]]
        os.execve(command[0], command, {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
