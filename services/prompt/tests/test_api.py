"""Both calls over real gRPC, on a small random model in a temporary folder."""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
import yaml
from safetensors.torch import load

from vitascope_common.errors import InvalidModelError, InvalidRequestError, UnavailableError, VitascopeError
from vitascope_common.grpc_errors import from_rpc_error
from vitascope_common.objectstore_folder import FolderStore
from vitascope_common.registry import Registry
from vitascope_common.rpc import connect
from vitascope_common.testing import free_port
from vitascope_models.load import load_text_encoder, random_weights
from vitascope_prompt.adapters.conditioning import StoredConditioning
from vitascope_prompt.adapters.models import FolderCatalogue, TorchEncoder
from vitascope_prompt.adapters.policy_file import PolicyFile
from vitascope_prompt.api import make_server
from vitascope_prompt.service import PromptService
from vitascope_prompt.settings import PACKAGED_POLICY
from vitascope_proto.v1 import prompt_pb2, prompt_pb2_grpc

MODEL = "tiny-1"
PROMPT_MAX_CHARS = 200
CARD = {
    "id": MODEL,
    "kind": "generate",
    "engine": "native",
    "pool": "default",
    "group_size": 1,
    "title": "Tiny",
    "description": "Random weights for tests.",
    "licence": "Apache-2.0",
    "created": 0,
    "architecture": {
        "vae": {"latent_channels": 4, "widths": [8, 8, 8]},
        "text_encoder": {"width": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 8},
        "dit": {"latent_channels": 4, "width": 16, "num_layers": 1, "num_heads": 2, "text_width": 16},
    },
    "sizes": ["64x64"],
    "seconds": ["2"],
    "num_frames": {"2": 17},
    "defaults": {
        "size": "64x64",
        "seconds": "2",
        "fps": 8,
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "shift": 1.0,
        "solver": "euler",
    },
    "limits": {"num_inference_steps": [1, 10], "guidance_scale": [0, 10], "prompt_max_chars": PROMPT_MAX_CHARS},
    "cost": {"fixed_s": 0.1, "per_step_frame_s": 0.01},
    "price": {"usd_micros_per_second": 1},
}


def write_model(models_dir: Path, seed: int = 1) -> Path:
    """Write the tiny model's files and card; return its folder."""
    folder = models_dir / MODEL
    card = random_weights(CARD, folder, seed)
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


@dataclass
class Running:
    """A prompt service in this process and everything it stands on."""

    stub: prompt_pb2_grpc.PromptServiceStub
    policy_path: Path
    models_dir: Path
    store: FolderStore
    store_root: Path


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    policy_path, models_dir, root = tmp_path / "policy.yaml", tmp_path / "models", tmp_path / "objects"
    policy_path.write_bytes(PACKAGED_POLICY.read_bytes())
    write_model(models_dir)
    registry, store = Registry(models_dir), FolderStore(root)
    service = PromptService(
        PolicyFile(policy_path), FolderCatalogue(registry), TorchEncoder(registry), StoredConditioning(store)
    )
    server = make_server("127.0.0.1:0", service)
    await server.start()
    channel: grpc.aio.Channel = connect(f"127.0.0.1:{server.port}")
    yield Running(prompt_pb2_grpc.PromptServiceStub(channel), policy_path, models_dir, store, root)
    await channel.close()
    await server.drain(1.0)
    service.close()


async def check(running: Running, prompt: str, negative_prompt: str = "", model: str = MODEL) -> Any:
    request = prompt_pb2.CheckRequest(tenant_id="t", model=model, prompt=prompt, negative_prompt=negative_prompt)
    return await _call(running.stub.Check(request))


async def encode(running: Running, prompt: str, negative_prompt: str = "", model: str = MODEL) -> Any:
    request = prompt_pb2.EncodeRequest(model=model, prompt=prompt, negative_prompt=negative_prompt)
    return await _call(running.stub.Encode(request))


async def _call(call: Any) -> Any:
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


async def error_of(call: Any) -> VitascopeError:
    with pytest.raises(VitascopeError) as caught:
        await call
    return caught.value


async def test_a_harmless_prompt_passes_normalised(running: Running) -> None:
    answer = await check(running, "  a \u200bred\t circle ", " no  blood ")
    assert (answer.allowed, answer.prompt, answer.negative_prompt) == (True, "a red circle", "no blood")
    assert (answer.category, answer.score, answer.message) == ("", 0, "")
    assert answer.policy_version


async def test_a_refusal_names_the_category_and_not_the_pattern(running: Running) -> None:
    answer = await check(running, "a b.e.h.e.a.d.e.d man")
    assert not answer.allowed
    assert answer.category == "graphic_violence"
    assert answer.score >= 0.5
    assert "graphic violence" in answer.message
    assert "behead" not in answer.message


async def test_the_negative_prompt_is_named_when_it_decides(running: Running) -> None:
    answer = await check(running, "a red circle", "naked child")
    assert not answer.allowed
    assert "negative prompt" in answer.message
    assert answer.param == "negative_prompt"
    assert (await check(running, "naked child")).param == "prompt"
    assert (await check(running, "a red circle")).param == ""


@pytest.mark.parametrize("prompt", ["", "   ", "\u200b\u2060", "\n\t"])
async def test_an_empty_prompt_is_invalid(running: Running, prompt: str) -> None:
    error = await error_of(check(running, prompt))
    assert isinstance(error, InvalidRequestError)
    assert error.param == "prompt"


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
async def test_the_card_limits_the_length(running: Running, param: str) -> None:
    await check(running, **{"prompt": "x", param: "x" * PROMPT_MAX_CHARS})
    error = await error_of(check(running, **{"prompt": "x", param: "x" * (PROMPT_MAX_CHARS + 1)}))
    assert isinstance(error, InvalidRequestError)
    assert error.param == param
    assert str(PROMPT_MAX_CHARS) in error.message


@pytest.mark.parametrize("call", [check, encode])
async def test_an_unknown_model_is_answered_with_the_known_ones(running: Running, call: Any) -> None:
    error = await error_of(call(running, "a red circle", model="nope"))
    assert isinstance(error, InvalidModelError)
    assert error.param == "model"
    assert MODEL in error.message


async def test_a_changed_policy_holds_at_once(running: Running) -> None:
    assert (await check(running, "a red circle")).allowed
    running.policy_path.write_text(ONE_WORD_POLICY)
    answer = await check(running, "a red circle")
    assert (answer.allowed, answer.category, answer.policy_version) == (False, "shapes", "test")


@pytest.mark.parametrize("spoil", ["missing", "broken", "invalid", "binary", "folder"])
async def test_without_a_policy_nothing_passes(running: Running, spoil: str) -> None:
    assert (await check(running, "a red circle")).allowed
    running.policy_path.unlink()
    if spoil == "folder":
        running.policy_path.mkdir()
    elif spoil != "missing":
        content = {"broken": b"version: [", "invalid": b"version: '1'", "binary": b"\xff\xfe"}[spoil]
        running.policy_path.write_bytes(content)
    for _ in range(2):
        assert isinstance(await error_of(check(running, "a red circle")), UnavailableError)
    if spoil == "folder":
        running.policy_path.rmdir()
    running.policy_path.write_bytes(PACKAGED_POLICY.read_bytes())
    assert (await check(running, "a red circle")).allowed


async def test_a_broken_card_is_no_fault_of_the_caller(running: Running) -> None:
    (running.models_dir / MODEL / "card.yaml").write_text("id: [")
    assert isinstance(await error_of(check(running, "a red circle")), UnavailableError)


async def test_conditioning_is_what_the_encoder_says(running: Running) -> None:
    answer = await encode(running, "a red circle", "blue")
    artifact = answer.conditioning
    data = running.store.get_bytes(artifact.key)
    assert (artifact.role, artifact.num_bytes) == ("conditioning", len(data))
    assert artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert artifact.key.startswith("conditioning/")
    tensors = load(data)
    card = yaml.safe_load((running.models_dir / MODEL / "card.yaml").read_text())
    encoder = load_text_encoder(running.models_dir / MODEL, card)
    for half, text in (("cond", "a red circle"), ("uncond", "blue")):
        expected = encoder.encode(text)
        for name in ("tokens_LD", "mask_L", "pooled_D"):
            found, wanted = tensors.pop(f"{half}_{name}"), getattr(expected, name)
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
    assert not tensors


async def test_the_second_call_finds_the_object_of_the_first(running: Running) -> None:
    first, second = await encode(running, "a red circle"), await encode(running, "a red circle")
    assert (first.cached, second.cached) == (False, True)
    assert first.conditioning == second.conditioning


async def test_calls_at_the_same_time_encode_once(running: Running) -> None:
    answers = await asyncio.gather(*(encode(running, "a star") for _ in range(8)))
    assert sum(not answer.cached for answer in answers) == 1
    assert len({answer.conditioning.sha256 for answer in answers}) == 1


async def test_whatever_the_result_depends_on_changes_the_key(running: Running) -> None:
    keys = [
        (await encode(running, prompt, negative)).conditioning.key
        for prompt, negative in (("a", ""), ("a", "b"), ("ab", ""), ("", "a"), ("", ""))
    ]
    write_model(running.models_dir, seed=2)
    keys.append((await encode(running, "a")).conditioning.key)
    assert len(set(keys)) == len(keys)


async def test_the_same_prompt_gives_the_same_bytes(running: Running) -> None:
    first = (await encode(running, "a red circle")).conditioning
    running.store.delete(first.key)
    again = await encode(running, "a red circle")
    assert not again.cached
    assert again.conditioning == first


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
async def test_a_damaged_object_is_made_anew(running: Running, damage: str) -> None:
    first = (await encode(running, "a red circle")).conditioning
    path = running.store_root / first.key
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-20] ^= 1
    path.write_bytes({"cut": data[:100], "flipped": data, "empty": b"", "foreign": b"\x02" + bytes(7) + b"{}"}[damage])
    again = await encode(running, "a red circle")
    assert not again.cached
    assert again.conditioning == first
    assert hashlib.sha256(path.read_bytes()).hexdigest() == first.sha256


async def test_what_another_machine_encoded_stays(running: Running) -> None:
    """Two replicas whose hardware rounds differently agree on the object that was there first."""
    first = (await encode(running, "a red circle")).conditioning
    other = (await encode(running, "a blue star")).conditioning
    shelf = StoredConditioning(running.store)
    kept = shelf.keep(first.key, running.store.get_bytes(other.key))
    assert kept.sha256 == first.sha256


async def test_the_object_store_is_away(running: Running) -> None:
    moved = running.store_root.rename(running.store_root.with_name("gone"))
    running.store_root.write_text("not a folder")
    assert isinstance(await error_of(encode(running, "a red circle")), UnavailableError)
    assert (await check(running, "a red circle")).allowed
    running.store_root.unlink()
    moved.rename(running.store_root)
    assert not (await encode(running, "a red circle")).cached


@pytest.mark.parametrize("damage", ["corrupt", "missing"])
async def test_weights_that_cannot_be_used(running: Running, damage: str) -> None:
    path = running.models_dir / MODEL / "text_encoder.safetensors"
    data = path.read_bytes()
    path.unlink()
    if damage == "corrupt":
        path.write_bytes(bytes(len(data)))
    assert isinstance(await error_of(encode(running, "a red circle")), UnavailableError)
    path.write_bytes(data)
    assert not (await encode(running, "a red circle")).cached


ONE_WORD_POLICY = """
version: test
threshold: 0.5
lists: {}
categories:
  - {name: shapes, label: shapes, rules: [{score: 1, any: [circle]}]}
"""


def _environment(tmp_path: Path, **values: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
    return kept | {
        "VITASCOPE_MODELS_DIR": str(tmp_path / "models"),
        "VITASCOPE_OBJECT_STORE_URL": f"file://{tmp_path}/objects",
        **values,
    }


def _wait_for_metric(port: int, name: str, value: float, deadline: float) -> None:
    """Return once the process serves the metric with this value."""
    url, seen = f"http://127.0.0.1:{port}/metrics", ""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            seen = next((line for line in answer.read().decode().splitlines() if line.startswith(name + "{")), "")
        if seen.endswith(f" {value}"):
            return
        time.sleep(0.02)
    raise AssertionError(f"{name} did not become {value} in time: {seen!r}")


def test_the_process_serves_says_when_it_is_ready_and_drains(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    policy_path = tmp_path / "policy.yaml"
    policy_path.write_text("broken: [")
    port, metrics_port = free_port(), free_port()
    environment = _environment(
        tmp_path,
        VITASCOPE_PROMPT_PORT=str(port),
        VITASCOPE_PROMPT_METRICS_PORT=str(metrics_port),
        VITASCOPE_PROMPT_POLICY_PATH=str(policy_path),
    )
    command = [sys.executable, "-m", "vitascope_prompt"]
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_for_metric(metrics_port, "vitascope_ready", 0.0, deadline)
            policy_path.write_text(ONE_WORD_POLICY)
            _wait_for_metric(metrics_port, "vitascope_ready", 1.0, deadline)
            _wait_for_metric(metrics_port, "vitascope_pid", float(process.pid), deadline)
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                request = prompt_pb2.CheckRequest(model=MODEL, prompt="a secretword circle")
                assert not prompt_pb2_grpc.PromptServiceStub(channel).Check(request, timeout=10).allowed
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "prompt.checked" in stderr
    assert "policy.unusable" in stderr
    assert "secretword" not in stderr


def test_a_misspelt_variable_stops_the_start(tmp_path: Path) -> None:
    environment = _environment(tmp_path, VITASCOPE_PROMPT_POLICY_PAHT="x")
    command = [sys.executable, "-m", "vitascope_prompt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "VITASCOPE_PROMPT_POLICY_PAHT" in done.stderr
    assert "VITASCOPE_PROMPT_POLICY_PATH" in done.stderr
    assert "Traceback" not in done.stderr
