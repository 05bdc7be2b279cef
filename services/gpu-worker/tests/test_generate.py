"""One task from claim to report, against real Redis, object store, ffmpeg and a tiny model."""

import shutil
from dataclasses import replace

import av
import numpy
import pytest
import torch
import yaml
from safetensors.torch import load as load_tensors

from vitascope_common.errors import InvalidModelError, InvalidRequestError
from vitascope_common.jobs import Artifact
from vitascope_common.registry import Registry, load_card
from vitascope_common.registry_cards import Attention
from vitascope_gpu_worker.engines import native
from vitascope_gpu_worker.models import Models
from vitascope_gpu_worker.states import WorkerState as S
from vitascope_proto.v1 import scheduler_pb2


def test_a_task_becomes_latents_and_a_mezzanine(rig):
    worker, task = rig.worker(), rig.task()
    worker.run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert report.outcome == scheduler_pb2.OUTCOME_DONE
    assert [(one.role, one.media_type) for one in report.outputs] == [
        ("mezzanine", "video/x-matroska"),
        ("latents", "application/vnd.safetensors"),
    ]
    for one in report.outputs:
        info = rig.store.stat(one.key)
        assert (info.sha256, info.num_bytes) == (one.sha256, one.num_bytes)
    assert report.used_s > 0
    durations = {name: report.meters[name] for name in ("load_s", "encode_s", "denoise_s", "decode_s", "upload_s")}
    assert all(took_s > 0 for took_s in durations.values()), durations
    assert sum(durations.values()) < report.used_s + 1
    assert report.meters["peak_memory_mb"] > 50  # of this process, which has torch
    assert not list((rig.folder / "data" / "gpu-worker" / "work").iterdir())
    assert not list((rig.folder / "data" / "gpu-worker" / "checkpoints").iterdir())


def test_the_mezzanine_holds_every_byte_that_the_decoder_gave(rig, card):
    worker, task = rig.worker(), rig.task()
    worker.run(task)
    latents = load_tensors(rig.output(task, 1, "latents"))["latents"]
    engine = native.load(card, rig.models_dir / "tiny", torch.device("cpu"))
    expected = torch.cat(list(engine._vae.decode_stream(latents))).numpy()
    path = rig.folder / "mezzanine.mkv"
    path.write_bytes(rig.output(task, 1, "mezzanine"))
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "ffv1"
        assert stream.average_rate == 8
        frames = numpy.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert frames.shape == (9, 16, 16, 3)
    assert (frames == expected).all()


def test_temporal_attention_is_the_tasks_where_the_card_allows_it(rig, card):
    allowing = card.model_copy(update={"attention": Attention(temporal="full", allowed=("full", "causal"))})
    engine = native.load(allowing, rig.models_dir / "tiny", torch.device("cpu"))
    params = rig.task(num_inference_steps=1).params
    conditioning = rig.worker().work._conditioning(params)

    def latents(**chosen):
        run = engine.prepare(replace(params, **chosen), conditioning)
        engine.step(run)
        return run.latents_BCTHW

    assert torch.equal(latents(), latents(temporal_attention="full"))
    assert not torch.equal(latents(), latents(temporal_attention="causal"))
    with pytest.raises(InvalidRequestError, match="allows no temporal attention window; it allows full, causal"):
        latents(temporal_attention="window")


@pytest.mark.parametrize("chosen", [{"solver": "ddim"}, {"temporal_attention": "causal"}])
def test_what_the_card_does_not_allow_is_no_work_for_any_attempt(rig, chosen):
    task = rig.task(**chosen)
    rig.worker().run(task)
    report = rig.scheduler.report_of(task.task_id, 1)
    assert (report.error_code, report.is_retryable) == ("invalid_request", False)
    assert next(iter(chosen.values())) in report.error_message


def test_every_step_is_an_event_in_order(rig):
    worker, task = rig.worker(), rig.task(num_inference_steps=12)
    worker.run(task)
    seen = rig.events(task)
    assert [data["step"] for kind, data in seen if kind == "progress" and data["phase"] == "denoising"] == [*range(13)]
    last = [data for kind, data in seen if kind == "progress"][-1]
    assert (last["steps"], last["percent"]) == (12, 100.0)
    assert last["eta_s"] >= 0
    assert seen[-1][0] == "decoding"


def test_the_worker_passes_the_states_of_its_machine(rig):
    worker, task = rig.worker(), rig.task(num_inference_steps=12)
    worker.run(task)
    steps = [S.CHECKPOINTING, S.GENERATING, S.CHECKPOINTING, S.GENERATING]
    begin = [S.IDLE, S.LOADING, S.READY, S.INITIALIZING, S.GENERATING]
    end = [S.DECODING, S.AUDIO_SYNC, S.SAFETY_CHECK, S.UPLOADING, S.COMPLETE, S.IDLE]
    assert worker.states == begin + steps + end


def test_the_model_stays_loaded_and_is_announced(rig):
    worker = rig.worker()
    worker.run(rig.task())
    first = worker.models.get("tiny", rig.card.sha256)[1]
    worker.run(rig.task())
    assert worker.models.get("tiny", rig.card.sha256)[1] is first
    assert worker.executor.identity.warm_models == ("tiny",)


def test_a_model_that_does_not_run_on_so_many_ranks_is_refused(tmp_path, rig):
    folder = shutil.copytree(rig.models_dir, tmp_path / "models")
    models = Models(Registry(folder), torch.device("cpu"))
    models.get("tiny", rig.card.sha256)
    path = folder / "tiny" / "card.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"parallelism": {"tensor_parallel": [2, 4]}}))
    with pytest.raises(InvalidModelError, match=r"tiny allows \[2, 4\] ranks; this worker consists of 1"):
        models.get("tiny", rig.card.sha256)


def test_a_card_that_runs_the_same_weights_otherwise_is_another_model(tmp_path, rig):
    folder = shutil.copytree(rig.models_dir, tmp_path / "models")
    models = Models(Registry(folder), torch.device("cpu"))
    before = models.get("tiny", rig.card.sha256)[1]
    path = folder / "tiny" / "card.yaml"
    described = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(described | {"attention": {"temporal": "window", "window": 1, "num_anchors": 0}}))
    with pytest.raises(InvalidModelError, match="has changed since this job was accepted"):
        models.get("tiny", rig.card.sha256)
    card = load_card(path)
    after = models.get("tiny", card.sha256)[1]
    assert after is not before
    assert (after._dit.window, after._dit.num_anchors) == (1, 0)


def test_the_seed_and_the_prompt_decide(rig):
    worker = rig.worker()
    tasks = [rig.task(), rig.task(), rig.task(seed=8), rig.task(prompt="a circle")]
    for task in tasks:
        worker.run(task)
    same, again, other_seed, other_prompt = (rig.output(task, 1, "latents") for task in tasks)
    assert same == again
    assert len({same, other_seed, other_prompt}) == 3


@pytest.mark.parametrize("solver", ["heun", "rk4"])
def test_the_other_solvers_run(rig, solver):
    worker, task = rig.worker(), rig.task(num_inference_steps=3, solver=solver)
    worker.run(task)
    assert rig.scheduler.report_of(task.task_id, 1).outcome == scheduler_pb2.OUTCOME_DONE


def test_artifacts_lie_below_the_attempt(rig):
    worker, task = rig.worker(), rig.task()
    worker.run(task)
    outputs = [
        Artifact(o.name, o.role, o.media_type, o.key, o.sha256, o.num_bytes) for o in rig.scheduler.reports[-1].outputs
    ]
    assert all(one.key.startswith(f"work/{task.job_id}/generate/0/1/") for one in outputs)
