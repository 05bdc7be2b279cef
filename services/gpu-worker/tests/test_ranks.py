"""Several ranks work as one: the orders between threads, and the real thing under torchrun."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import load as load_tensors
from structlog.testing import capture_logs

from vitascope_common.errors import InternalError, InvalidRequestError
from vitascope_common.jobs import Artifact, Reference
from vitascope_common.registry import Registry
from vitascope_common.testing import free_port
from vitascope_gpu_worker.engine import REFERENCE, Snapshot
from vitascope_gpu_worker.errors import GroupError, OutOfMemoryError, RankLostError
from vitascope_gpu_worker.models import Models
from vitascope_gpu_worker.ranks import LedEngine, Message, Order, follow
from vitascope_proto.v1 import scheduler_pb2

STEPS = 60
LONG = 400
"""Steps of a task that is not meant to be finished by two ranks."""
DONE, YIELDED, FAILED = scheduler_pb2.OUTCOME_DONE, scheduler_pb2.OUTCOME_YIELDED, scheduler_pb2.OUTCOME_FAILED


class Threads:
    """Ranks that are threads: orders through a queue; nothing is divided, so every rank computes the whole."""

    mesh = None

    def __init__(self, rank, orders, here):
        self.rank = rank
        self._orders = orders
        self._here = here

    def tell(self, order, number=0, values=None, tensors=None):
        copies = {name: tensor.clone() for name, tensor in (tensors or {}).items()}
        self._orders.put(Message(order, number, dict(values or {}), copies))

    def hear(self):
        return self._orders.get(timeout=20)

    def meet(self):
        self._here.wait(20)


@pytest.fixture
def pair(rig):
    orders, here = SimpleQueue(), threading.Barrier(2)
    lead, other = Threads(0, orders, here), Threads(1, orders, here)
    models = [Models(Registry(rig.models_dir), torch.device("cpu"), ranks) for ranks in (lead, other)]
    thread = threading.Thread(target=follow, args=(other, models[1]))
    thread.start()
    yield models, lead
    lead.tell(Order.LEAVE)
    thread.join(20)
    assert not thread.is_alive()


def followed(models):
    """Let the steps of the second rank leave their latents here."""
    engine, seen = models[1]._loaded[1], []
    step = engine.step

    def watched(run):
        step(run)
        seen.append((run.step, run.latents_BCTHW.clone()))

    engine.step = watched
    return seen


def conditioning_of(rig):
    rig.worker().run(rig.task(num_inference_steps=1))
    [info] = rig.store.list("conditioning/")
    return load_tensors(rig.store.get_bytes(info.key))


def test_the_others_take_every_step_from_rank_0s_state(rig, pair, wait_until):
    models, _ = pair
    conditioning, params = conditioning_of(rig), rig.task(num_inference_steps=4).params
    _, engine = models[0].get("tiny", rig.card.sha256)
    assert isinstance(engine, LedEngine)
    seen = followed(models)
    run = engine.prepare(params, conditioning)
    expected = []
    for _ in range(2):
        engine.step(run)
        expected.append((run.step, run.latents_BCTHW.clone()))
    run.restore(Snapshot(1, torch.randn(run.latents_BCTHW.shape), {}, run.generator.get_state()))
    while not run.is_denoised:
        engine.step(run)
        expected.append((run.step, run.latents_BCTHW.clone()))
    wait_until(lambda: len(seen) == len(expected), "the steps")
    assert [step for step, _ in seen] == [1, 2, 2, 3, 4]
    assert all(torch.equal(here, there) for (_, here), (_, there) in zip(seen, expected, strict=True))
    assert sum(len(frames) for frames in engine.decode(run)) == params.num_frames


@pytest.mark.parametrize("role", ["first_frame", "change"])
def test_the_others_know_what_a_clip_is_made_from(rig, pair, wait_until, role):
    models, _ = pair
    artifact = Artifact(role, "reference", "image/png", "work/j/references/x", "0" * 64, 1)
    params = rig.task(num_inference_steps=3, references=(Reference(role, artifact, 0.5),)).params
    shape = (16, 16, 3) if role == "first_frame" else (9, 16, 16, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    _, engine = models[0].get("tiny", rig.card.sha256)
    seen = followed(models)
    run = engine.prepare(params, conditioning_of(rig) | {REFERENCE + role: frames})
    assert engine.preview(run) is None
    engine.step(run)  # from rank 0's latents, which are told
    second = run.latents_BCTHW.clone()
    while not run.is_denoised:
        engine.step(run)  # from their own
    wait_until(lambda: len(seen) == 3, "the steps")
    assert torch.equal(seen[0][1], second)
    assert torch.equal(seen[-1][1], run.latents_BCTHW)
    assert not torch.equal(second, run.latents_BCTHW)
    assert engine.preview(run).shape == (3, 8, 8, 3)


def test_what_is_refused_is_not_told_to_the_others(rig, pair):
    models, _ = pair
    _, engine = models[0].get("tiny", rig.card.sha256)
    seen = followed(models)
    with pytest.raises(InvalidRequestError):
        engine.prepare(rig.task(num_frames=10).params, {})
    run = engine.prepare(rig.task(num_inference_steps=1).params, conditioning_of(rig))
    engine.step(run)
    assert run.is_denoised
    assert len(seen) <= 1


def test_an_error_in_a_step_is_the_end_of_the_group(rig):
    orders = SimpleQueue()
    engine = Models(Registry(rig.models_dir), torch.device("cpu")).get("tiny", rig.card.sha256)[1]
    led = LedEngine(engine, Threads(0, orders, None))
    run = led.prepare(rig.task().params, conditioning_of(rig))
    for raised, expected in (
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"), RankLostError),
        (ZeroDivisionError(), GroupError),
        (torch.OutOfMemoryError("no memory"), OutOfMemoryError),
    ):
        engine._dit.forward = lambda *_, raised=raised: (_ for _ in ()).throw(raised)
        with pytest.raises(expected) as caught, capture_logs() as said:
            led.step(run)
        assert caught.type is expected
        assert [one["exc_info"] for one in said] == ([raised] if expected is GroupError else [])


def test_a_rank_that_follows_calls_a_broken_sum_by_its_name(rig):
    orders, here = SimpleQueue(), threading.Barrier(1)
    lead, models = Threads(0, orders, here), Models(Registry(rig.models_dir), torch.device("cpu"))
    engine = models.get("tiny", rig.card.sha256)[1]
    led = LedEngine(engine, lead)
    led.load(rig.card)
    run = led.prepare(rig.task().params, conditioning_of(rig))
    led.step(run)
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    engine._dit.forward = lambda *_: (_ for _ in ()).throw(closed)
    with pytest.raises(RankLostError, match="Connection closed by peer"):
        follow(Threads(1, orders, here), models)


@pytest.mark.parametrize("message", [Message(Order.STEP, 0), Message(Order.RESTORE, 3), Message(Order.BEGIN)])
def test_an_order_out_of_turn_ends_the_rank(rig, message):
    orders = SimpleQueue()
    orders.put(message)
    with pytest.raises(InternalError, match="out of turn"):
        follow(Threads(1, orders, None), Models(Registry(rig.models_dir), torch.device("cpu")))


def test_a_step_that_rank_0_does_not_expect_ends_the_rank(rig):
    orders, here = SimpleQueue(), threading.Barrier(1)
    lead = Threads(0, orders, here)
    led = LedEngine(Models(Registry(rig.models_dir), torch.device("cpu")).get("tiny", rig.card.sha256)[1], lead)
    led.load(rig.card)
    led.prepare(rig.task().params, conditioning_of(rig))
    lead.tell(Order.STEP, 5)
    with pytest.raises(InternalError, match="STEP 5"):
        follow(Threads(1, orders, here), Models(Registry(rig.models_dir), torch.device("cpu")))


def ranks_of(torchrun: int) -> dict[int, int]:
    """Return the process of each rank below a torchrun."""
    found = {}
    for children in Path(f"/proc/{torchrun}/task").glob("*/children"):
        for pid in children.read_text().split():
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(one[5:]): int(pid) for one in environ if one.startswith(b"RANK=")}
    return found


def steps_of(rig, task):
    """Return how often each step was taken, by all attempts."""
    seen = [data for kind, data in rig.events(task) if data.get("phase") == "denoising" and "from_step" not in data]
    return Counter(data["step"] for data in seen)


def latents_of(rig, task, attempt):
    return load_tensors(rig.output(task, attempt, "latents"))["latents"]


def start_without_torchrun(rig, **env):
    """Start two ranks that nobody ends together; return rank 0's process and rank 1's."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    other, lead = (rig.process(RANK=rank, LOCAL_RANK=rank, **group, **env) for rank in ("1", "0"))
    return lead, other


@pytest.mark.slow
@pytest.mark.timeout(300)  # torch is imported five times
def test_two_ranks_make_the_clip_of_one_and_outlive_the_loss_of_rank_1(rig, wait_until):
    alone, undisturbed, task = (rig.task(num_inference_steps=STEPS) for _ in range(3))
    rig.worker().run(alone)
    lead, other = start_without_torchrun(rig, VITASCOPE_GPU_WORKER_CHECKPOINT_STEPS="5")
    worker_id = rig.hand_over(undisturbed)
    wait_until(lambda: rig.scheduler.report_of(undisturbed.task_id, 1), "the report")
    assert [one.group_size for one in rig.scheduler.registered if one.worker_id == worker_id] == [2]
    torch.testing.assert_close(latents_of(rig, undisturbed, 1), latents_of(rig, alone, 1), rtol=0, atol=1e-5)

    rig.hand_over(task)
    wait_until(lambda: rig.scheduler.tasks[task.task_id].checkpoints, "a checkpoint")
    other.kill()
    assert lead.wait(30) == 1
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.outcome, report.error_code) == (FAILED, "rank_lost")
    assert 0 < report.checkpoint.done < STEPS

    torchrun = rig.process(torchrun=True, num_ranks=2, VITASCOPE_GPU_WORKER_CHECKPOINT_STEPS="5")
    worker_id = rig.hand_over(task)
    wait_until(lambda: rig.scheduler.report_of(task.task_id, 2), "the report")
    for role in ("latents", "mezzanine"):
        assert rig.output(task, 2, role) == rig.output(undisturbed, 1, role)

    os.kill(ranks_of(torchrun.pid)[1], signal.SIGKILL)  # while there is nothing to do
    assert torchrun.wait(30) == 1  # for whoever started it to start it again
    assert any(beat.is_draining for beat in rig.scheduler.heartbeats if beat.worker_id == worker_id)


@pytest.mark.slow
@pytest.mark.timeout(300)  # torch is imported three times
def test_two_ranks_yield_at_once_and_drain_together(rig, wait_until):
    process = rig.process(torchrun=True, num_ranks=2, VITASCOPE_GPU_WORKER_CHECKPOINT_STEPS="5")
    tasks = [rig.task(num_inference_steps=LONG) for _ in range(2)]
    for task in tasks:
        worker_id = rig.hand_over(task)
        wait_until(lambda task=task: rig.scheduler.tasks[task.task_id].checkpoints, "a checkpoint")
        if task is tasks[0]:  # the next heartbeat's answer repeats it; "run" would call it off
            rig.scheduler.actions[task.task_id] = scheduler_pb2.ACTION_YIELD
            rig.send(worker_id, {"command": "yield", "task_id": task.task_id, "attempt": 1})
        else:
            process.terminate()
        report = wait_until(lambda task=task: rig.scheduler.report_of(task.task_id, 1), "the report")
        assert report.outcome == YIELDED
        rig.scheduler.actions.clear()
        assert report.checkpoint.done == max(steps_of(rig, task))
    process.wait(20)
    for task in tasks:
        with capture_logs() as said:
            rig.worker().run(task)
        assert rig.scheduler.report_of(task.task_id, 2).outcome == DONE
        assert steps_of(rig, task) == dict.fromkeys(range(1, LONG + 1), 1)  # each of them once, by two attempts
        assert [one["what"] for one in said if one["event"] == "checkpoint.not_bit_identical"] == ["num_ranks"]
