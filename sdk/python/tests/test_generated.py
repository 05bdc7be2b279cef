"""The synchronous client is what its source gives, and says nothing that only the other one can do."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitascope_client

FOLDER = Path(__file__).parents[1]
GENERATE = "import json, make_sync; print(json.dumps(make_sync.generated()))"


def test_the_generated_code_is_what_the_source_gives() -> None:
    done = subprocess.run([sys.executable, "-c", GENERATE], cwd=FOLDER, capture_output=True, text=True, check=True)
    kept = {path.name: path.read_text() for path in (FOLDER / "vitascope_client/_sync").glob("*.py")}
    assert json.loads(done.stdout) == kept, "run `make sdk`"


def test_nothing_asynchronous_is_left() -> None:
    for path in (FOLDER / "vitascope_client/_sync").glob("*.py"):
        code = path.read_text().partition("\n")[2]  # behind the line that says where it comes from
        left = re.findall(r"\b(?:async\w*|await|_async|Async\w+|a(?:close|closing|read|next|iter)\w*|asyncio)\b", code)
        assert left == [] or path.name == "__init__.py", f"{path.name}: {left}"


@pytest.mark.parametrize("name", ["Admin", "EventStream", "Videos", "Vitascope"])
def test_both_clients_offer_the_same(name: str) -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            re.sub(r"^a(close|iter|next|enter|exit)", r"\1", one.strip("_")): list(inspect.signature(method).parameters)
            for one, method in methods
            if not one.startswith("_") or one.endswith("__")
        }

    assert offered(getattr(vitascope_client, name)) == offered(getattr(vitascope_client, f"Async{name}"))
