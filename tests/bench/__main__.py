"""Run benchmarks: `python -m tests.bench [NAME ...]`; without a name, all. Writes out/bench/NAME.json."""

import argparse
import importlib

from tests.bench.figures import OUT, NotInstalledError, table, write

NAMES = (
    "api",
    "dispatch",
    "fairness",
    "flood",
    "followers",
    "models",
    "queue",
    "recovery",
    "trainer",
    "worker_loop",
)


def main() -> int:
    """Run what was named; 1 when a goal was missed or something could not be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("name", nargs="*", choices=[*NAMES, []], metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    is_met = True
    for name in parser.parse_args().name or NAMES:
        try:
            figures = importlib.import_module(f"tests.bench.{name}").run()
        except NotInstalledError as error:
            print(f"{name}  NOT RUN  {error}", flush=True)
            is_met = False
            continue
        write(OUT / f"{name}.json", figures)
        print(table(name, figures), flush=True)
        is_met = is_met and all(figure.is_met for figure in figures)
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
