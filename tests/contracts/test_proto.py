"""The contracts between services: generated code is current, units are named, nothing that is out there changes.

`python tests/contracts/test_proto.py` adds what is new to proto.lock.json; it never takes anything back.
"""

import copy
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

ROOT = Path(__file__).parents[2]
LOCK = Path(__file__).with_name("proto.lock.json")
SOURCES = sorted((ROOT / "proto").rglob("*.proto"))
NUMERIC = re.compile(
    r"^\s*(?:repeated\s+|optional\s+)?(?:map<\w+,\s*(?:double|float|u?int\d+)>|double|float|[us]?int(?:32|64)|s?fixed(?:32|64))"
    r"\s+(?P<name>\w+)\s*=\s*\d+\s*(?:\[[^\]]*\])?;(?P<rest>.*)$"
)
UNIT = re.compile(r"(^|_)(s|ms|us|ns|bytes|px|fps|usd_micros|percent)$")

Lock = dict[str, dict[str, Any]]


def described() -> Lock:
    """Describe messages, enums and services by what the wire and our code depend on."""
    lock: Lock = {}
    for source in SOURCES:
        module = import_module(source.relative_to(ROOT / "proto").with_suffix("").as_posix().replace("/", ".") + "_pb2")
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            _describe_message(f"{file.package}.{message.name}", message, lock)
        for enum in file.enum_type:
            lock[f"enum {file.package}.{enum.name}"] = {str(value.number): value.name for value in enum.value}
        for service in file.service:
            lock[f"service {file.package}.{service.name}"] = {
                method.name: [
                    ("stream " if method.client_streaming else "") + method.input_type,
                    ("stream " if method.server_streaming else "") + method.output_type,
                ]
                for method in service.method
            }
    return lock


def _describe_message(name: str, message: Any, lock: Lock) -> None:
    lock[f"message {name}"] = {
        str(field.number): [
            field.name,
            FieldDescriptorProto.Label.Name(field.label).removeprefix("LABEL_").lower(),
            field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower(),
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
        ]
        for field in message.field
    }
    for nested in message.nested_type:
        _describe_message(f"{name}.{nested.name}", nested, lock)


def broken(old: Lock, new: Lock) -> list[str]:
    """Say what of the old contract the new one no longer keeps; additions are fine."""
    problems = []
    for name, parts in old.items():
        if name not in new:
            problems.append(f"{name} is gone")
            continue
        for key, value in parts.items():
            if key not in new[name]:
                problems.append(f"{name}: {value} (number or name {key}) is gone")
            elif new[name][key] != value:
                problems.append(f"{name}: {key} was {value}, is {new[name][key]}")
    return problems


def test_the_generated_code_is_what_the_proto_files_give(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
    subprocess.run(
        [*command, *(str(source.relative_to(ROOT / "proto")) for source in SOURCES)], cwd=ROOT / "proto", check=True
    )
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.py*")}
    stubs = ROOT / "libs/proto"
    kept = {
        path.relative_to(stubs): path.read_bytes()
        for path in stubs.rglob("*_pb2*.py*")
        if "__pycache__" not in path.parts
    }
    assert fresh.keys() == kept.keys()
    assert [str(path) for path, content in fresh.items() if kept[path] != content] == [], "run `make proto`"


def test_numbers_name_their_unit() -> None:
    """By suffix (_ms, _bytes, num_ …) or by a comment at the field, or at one of the same name."""
    unnamed, explained = [], set()
    for source in SOURCES:
        above = ""
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
            match = NUMERIC.match(line)
            if match:
                name = match["name"]
                if (
                    "//" in match["rest"]
                    or above.strip().startswith("//")
                    or UNIT.search(name)
                    or name.startswith("num_")
                ):
                    explained.add(name)
                else:
                    unnamed.append((name, f"{source.name}:{number}"))
            above = line
    assert [where for name, where in unnamed if name not in explained] == []
    assert len(explained) > 15


def test_what_was_agreed_still_holds() -> None:
    assert broken(json.loads(LOCK.read_text()), described()) == []


def test_the_lock_knows_everything() -> None:
    """What is not in the lock is not protected."""
    assert broken(described(), json.loads(LOCK.read_text())) == [], f"run: python {Path(__file__).relative_to(ROOT)}"


@pytest.mark.parametrize(
    "change", ["renumber", "remove", "retype", "rename", "drop message", "drop method", "to stream"]
)
def test_a_broken_contract_is_noticed(change: str) -> None:
    old = json.loads(LOCK.read_text())
    new = copy.deepcopy(old)
    artifact, scheduler = new["message vitascope.v1.Artifact"], new["service vitascope.v1.SchedulerService"]
    if change == "renumber":
        artifact["60"] = artifact.pop("6")
    elif change == "remove":
        del artifact["6"]
    elif change == "retype":
        artifact["6"][2] = "int32"
    elif change == "rename":
        artifact["6"][0] = "size"
    elif change == "drop message":
        del new["message vitascope.v1.Artifact"]
    elif change == "drop method":
        del scheduler["Claim"]
    else:
        scheduler["Claim"][1] = "stream " + scheduler["Claim"][1]
    assert len(broken(old, new)) == 1
    artifact["99"] = ["added", "optional", "string", ""]
    assert len(broken(old, new)) == 1


if __name__ == "__main__":
    known: Lock = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    now = described()
    if problems := broken(known, now):
        sys.exit("\n".join(["not an addition:", *problems]))
    LOCK.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
