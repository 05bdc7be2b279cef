"""`vitascope up` with small children in the services' places.

up_small.py DATA_DIR MODE [NAME]    every child, or only NAME, is of this mode of child.py; the others are good
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from vitascope_cli import up
from vitascope_cli.data_dir import DataDir
from vitascope_cli.stack import REDIS, STOP_STAGES, Stack, default_models_dir, service_probe
from vitascope_cli.supervisor import ChildSpec

DATA_DIR, MODE, NAME = Path(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [""])[0]


def specs(stack: Stack, inherited: Mapping[str, str]) -> list[ChildSpec]:
    return [
        ChildSpec(
            name,
            (
                sys.executable,
                str(Path(__file__).with_name("child.py")),
                name,
                str(stack.ports[name]),
                MODE if NAME in ("", name) else "good",
            ),
            dict(os.environ),
            service_probe(name, "127.0.0.1", stack.ports[name]),
            start_stage=int(name != REDIS),
            stop_stage=stage,
        )
        for name, stage in STOP_STAGES.items()
    ]


Stack.specs = specs
sys.exit(up.up(DataDir(DATA_DIR), "127.0.0.1", 0, default_models_dir()))
