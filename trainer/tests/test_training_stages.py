"""The stages on a tiny recipe, from drawn clips to a model that generates: by the real command where it counts."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from rich.console import Console
from torch import Tensor
from typer.testing import CliRunner

from vitascope_common.errors import ConfigurationError, ConflictError
from vitascope_common.registry import Registry
from vitascope_models.load import load_dit, load_vae
from vitascope_models.vae import VAE, from_uint8
from vitascope_trainer import stages as stages_module
from vitascope_trainer.__main__ import app
from vitascope_trainer.checkpoints import read_account, read_state, write_state
from vitascope_trainer.config import WorldData, overridden
from vitascope_trainer.evaluation.loading import load_model, settings_of
from vitascope_trainer.export import read_card, write_card
from vitascope_trainer.generation import generate
from vitascope_trainer.latents import Encoder
from vitascope_trainer.launch import sole_writer
from vitascope_trainer.processes import Group
from vitascope_trainer.progress import Reporter
from vitascope_trainer.recipes import RECIPES, recipe_named, tiny
from vitascope_trainer.sources import Bucket, Clip, Said, WorldSource
from vitascope_trainer.stages import Stages
from vitascope_trainer.train_dit import DitTask
from vitascope_trainer.world.scenes import random_scene

CPU = torch.device("cpu")
FAST = ["run.validate_steps=0", "run.log_steps=1", "dit.text_steps=2", "dit.tokens_per_batch=16"]


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stages(out: Path, *assignments: str) -> Stages:
    recipe = overridden(tiny(), [*FAST, *assignments])
    return Stages(recipe, out, Group(0, 1, CPU), Reporter(Console(quiet=True)))


def options(*assignments: str) -> list[str]:
    return [part for each in (*FAST, *assignments) for part in ("--set", each)]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run every stage of the tiny recipe by the command, in this process."""
    before = torch.get_num_threads()
    out = tmp_path_factory.mktemp("run")
    result = CliRunner().invoke(app, ["all", "tiny", "--out", str(out)])
    assert result.exit_code == 0, result.output
    yield out
    torch.set_num_threads(before)


@pytest.fixture
def encoded(finished: Path, tmp_path: Path) -> Path:
    """Give a folder whose next stage is dit."""
    shutil.copy(finished / "vae.safetensors", tmp_path)
    shutil.copytree(finished / "latents", tmp_path / "latents")
    return tmp_path


def test_both_trainings_reduce_their_losses(finished: Path) -> None:
    vae, dit = rows(finished / "vae" / "metrics.jsonl"), rows(finished / "dit" / "metrics.jsonl")
    assert vae[-1]["loss"] < 0.8 * vae[0]["loss"]
    held_out = [row["held_out_loss"] for row in dit if "held_out_loss" in row]
    assert held_out[-1] < 0.9 * held_out[0]
    text = [row["loss"] for row in dit if row["step"] <= 10]
    assert text[-1] < text[0]


def test_the_exported_model_is_accepted_loads_and_generates(finished: Path) -> None:
    folder = finished / "model" / "tiny"
    registry = Registry(folder.parent)
    registry.fetch(registry.card("tiny"))
    card = read_card(folder)
    assert card["provenance"]["training"]["dit"]["steps"] == 40
    assert card["provenance"]["training"]["vae"]["held_out_psnr_db"] > 5
    assert card["provenance"]["recipe"]["dit"]["learning_rate"] == 3e-3
    model = load_model(folder)
    clip = next(generate(model, ["a red circle"], [1], settings_of(model.card)))
    assert clip.shape == (9, 32, 32, 3)
    assert (finished / "sheet.png").stat().st_size > 0


def test_the_preview_resembles_the_clip(finished: Path) -> None:
    folder = finished / "model" / "tiny"
    vae = load_vae(folder, read_card(folder))
    video = from_uint8(torch.from_numpy(_source().clip(7, Bucket(9, 32, 32)).frames_THWC)[None])
    shown = from_uint8(vae.preview(vae.encode(video))[None])
    wanted = torch.nn.functional.avg_pool2d(video[0, :, ::4], 2)
    mean_error = (wanted - wanted.mean(dim=(1, 2, 3), keepdim=True)).square().mean()
    assert (shown[0] - wanted).square().mean() < mean_error


def _source() -> WorldSource:
    source, _ = stages(Path("unused"))._sources("dit")
    assert isinstance(source, WorldSource)
    return source


def test_a_stage_that_is_finished_is_not_run_again(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors") if "model" not in path.parts}
    result = CliRunner().invoke(app, ["all", "tiny", "--out", str(finished)])
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_cache_equals_direct_encoding_bit_for_bit_and_resumes(finished: Path, encoded: Path) -> None:
    run = stages(encoded)
    source = _source()
    vae = VAE(**tiny().model.vae)  # type: ignore[arg-type]
    vae.load_state_dict(read_state(encoded / "vae.safetensors"))
    encoder = Encoder(vae, CPU, torch.float32)
    shards = sorted((encoded / "latents").glob("9x32x32-*/*.safetensors"))
    assert len(shards) == 3
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    run.latents()
    assert shards[0].stat().st_mtime_ns == kept, "only what is missing is encoded"
    for shard, index in ((0, 0), (1, 8), (1, 11), (2, 23)):
        direct = encoder.encode(source.clip(index, Bucket(9, 32, 32)))
        cached = {name: tensor[index % 8] for name, tensor in read_state(shards[shard]).items()}
        assert torch.equal(cached["latents"], direct.latents_CTHW)
        assert torch.equal(cached["last"], direct.last_CHW)
        assert direct.objects_THW is not None
        assert torch.equal(cached["objects"], direct.objects_THW)
        assert bool(cached["continues"]) == direct.is_continuation


def test_latents_of_another_vae_or_source_are_not_taken(encoded: Path) -> None:
    with pytest.raises(Exception, match="run the stage latents first"):
        stages(encoded, "data.dit.two=0.9").dit()


def test_a_shard_of_fewer_clips_is_encoded_anew_and_one_of_more_is_kept(encoded: Path) -> None:
    last = sorted((encoded / "latents").glob("9x32x32-*/*.safetensors"))[-1]
    write_state(last, {name: tensor[:4] for name, tensor in read_state(last).items()})
    with pytest.raises(ConfigurationError, match=r"lacks 1 of 3 files .* run the stage latents first"):
        stages(encoded).dit()
    stages(encoded).latents()
    assert len(read_state(last)["latents"]) == 8
    stages(encoded, "dit.buckets.0.num_clips=20").latents()
    assert len(read_state(last)["latents"]) == 8


def test_export_and_sheet_refuse_another_vae_or_model(finished: Path, tmp_path: Path) -> None:
    for stage in ("vae", "dit"):
        shutil.copy(finished / f"{stage}.safetensors", tmp_path)
    other = stages(tmp_path, "model.dit.num_heads=2", "model.dit.width=48")
    for draw in (other.export, other.sheet):
        with pytest.raises(ConflictError, match=r"model\.dit\.num_heads: 4 -> 2; model\.dit\.width: 32 -> 48"):
            draw(tmp_path / "result")
    vae = tmp_path / "vae.safetensors"
    for name in ("encoder.1.weight", "latent_std"):
        changed = {**read_state(finished / "vae.safetensors")}
        changed[name] = changed[name] + 0.01
        write_state(vae, changed, read_account(finished / "vae.safetensors"))
        for draw in (stages(tmp_path).export, stages(tmp_path).sheet):
            with pytest.raises(ConflictError, match="trained on the latents of another encoder"):
                draw(tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_the_provenance_tells_what_was_trained_and_not_what_export_was_called_with(
    finished: Path, tmp_path: Path
) -> None:
    stages(finished, "dit.learning_rate=1", "dit.steps=7", "vae.kl_weight=1", "seed=9").export(tmp_path / "model")
    told = read_card(tmp_path / "model")["provenance"]["recipe"]
    assert (told["dit"]["learning_rate"], told["dit"]["steps"], told["dit"]["seed"]) == (3e-3, 40, 0)
    assert (told["vae"]["kl_weight"], told["vae"]["steps"], told["vae"]["seed"]) == (1e-3, 24, 0)


def test_a_card_that_is_refused_leaves_the_model_that_was_there(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny"
    shutil.copytree(finished / "model" / "tiny", folder)
    (folder / "dit.safetensors").write_bytes(b"another good model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigurationError, match=r"tiny/card\.yaml: .*solvers"):
        stages(finished, "card.solvers=[guess]").export(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder], "nothing is left beside it"


def test_killed_by_kill_9_the_command_resumes_to_the_same_bits(encoded: Path) -> None:
    straight = encoded / "straight"
    shutil.copytree(encoded / "latents", straight / "latents")
    shutil.copy(encoded / "vae.safetensors", straight)
    arguments = options("run.checkpoint_steps=3", "dit.num_micro_batches=1")
    command = ["dit", "tiny", "--steps", "24", *arguments, "--out"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "vitascope_trainer", *command, str(encoded)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "checkpoint step=3" in line)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= int(read_state(encoded / "dit" / "checkpoint.safetensors")["num_steps"]) < 24
    assert not (encoded / "dit.safetensors").exists()
    for out in (straight, encoded):
        assert CliRunner().invoke(app, [*command, str(out)]).exit_code == 0
    for name in ("dit/checkpoint.safetensors", "dit.safetensors"):
        assert_same(read_state(straight / name), read_state(encoded / name))
    assert [row["step"] for row in rows(encoded / "dit" / "metrics.jsonl")] == list(range(1, 25))


def test_two_processes_stop_together_and_did_what_one_does_with_accumulation(encoded: Path) -> None:
    alone = encoded / "alone"
    shutil.copytree(encoded / "latents", alone / "latents")
    shutil.copy(encoded / "vae.safetensors", alone)
    command = ["dit", "tiny", *options("dit.decay_share=0"), "--out"]
    together = [sys.executable, "-u", "-m", "vitascope_trainer", *command, str(encoded), "--steps", "400"]
    with subprocess.Popen([*together, "--processes", "2"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "step=3/400" in line)
        process.terminate()
        told = process.stdout.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert "the checkpoint is written. Resume with: vitascope-train dit tiny" in told
    assert "--processes 2" in told
    two = read_state(encoded / "dit" / "checkpoint.safetensors")
    num_steps = int(two["num_steps"])
    assert 3 <= num_steps < 400
    assert CliRunner().invoke(app, [*command, str(alone), "--steps", str(num_steps)]).exit_code == 0
    one = read_state(alone / "dit" / "checkpoint.safetensors")
    assert int(one["num_steps"]) == num_steps
    torch.testing.assert_close(two["master"], one["master"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two["average"], one["average"], rtol=1e-5, atol=1e-6)
    losses = [[row["loss"] for row in rows(out / "dit" / "metrics.jsonl")] for out in (alone, encoded)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_two_runs_do_not_write_to_one_folder(encoded: Path) -> None:
    command = ["dit", "tiny", "--out", str(encoded), "--steps", "11", *options()]
    with sole_writer(encoded):
        refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ConflictError)
    assert "Another run writes to" in refused.exception.message
    assert not (encoded / "dit").exists()
    assert CliRunner().invoke(app, command).exit_code == 0


def test_torchrun_trains_in_two_processes_of_which_the_first_holds_the_folder(encoded: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*torchrun, "vitascope_trainer", "dit", "tiny", "--out", str(encoded), "--steps", "11", *options()]
    with sole_writer(encoded):
        refused = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode != 0
    assert "Another run writes to" in refused.stderr
    assert not (encoded / "dit").exists()
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    assert int(read_state(encoded / "dit" / "checkpoint.safetensors")["num_steps"]) == 11


def test_ctrl_c_tells_how_to_resume(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DitTask.loss

    def interrupted(task: DitTask, step: int, micro_batch: int) -> tuple[Tensor, int]:
        if (step, micro_batch) == (2, 0):
            signal.raise_signal(signal.SIGINT)
        return whole(task, step, micro_batch)

    monkeypatch.setattr(DitTask, "loss", interrupted)
    result = CliRunner().invoke(app, ["dit", "tiny", *options(), "--out", str(encoded)])
    assert result.exit_code == 130
    assert "dit stopped at step 3; the checkpoint is written." in result.output
    assert f"Resume with: vitascope-train dit tiny --out {encoded} --set run.validate_steps=0" in result.output


def test_no_stage_trains_on_what_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, said, scene = WorldSource.clip, WorldSource.said, WorldSource._scene
    drawn = []

    def trained_clip(source: WorldSource, index: int, bucket: Bucket) -> Clip:
        assert not source.held_out
        drawn.append(scene(source, index, bucket)[0])
        return clip(source, index, bucket)

    def trained_said(source: WorldSource, *arguments: object) -> Said:
        assert not source.held_out
        drawn.append(scene(source, *arguments[:2])[0])  # type: ignore[arg-type]
        return said(source, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(WorldSource, "clip", trained_clip)
    monkeypatch.setattr(WorldSource, "said", trained_said)
    run = stages(tmp_path, "vae.steps=2", "dit.steps=4", "dit.buckets.0.num_clips=8", "dit.buckets.1.num_clips=8")
    for stage in (run.vae, run.latents, run.dit):
        before = len(drawn)
        stage()
        assert len(drawn) > before
    run.export(tmp_path / "model")
    assert not any(each.is_held_out for each in drawn)


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_draws_what_is_held_out(name: str) -> None:
    data = recipe_named(name).data
    assert isinstance(data, WorldData)
    rng = random.Random(6)
    for mixture in (data.vae, data.dit):
        assert not any(random_scene(rng, mix=mixture.mix).is_held_out for _ in range(500))


def test_training_goes_on_from_a_model_folder(finished: Path, tmp_path: Path) -> None:
    folder = finished / "model" / "tiny"
    assignments = [f"init_from={folder}", "vae.steps=0", "dit.steps=1", "dit.latents=fresh", "dit.window_clips=4"]
    run = stages(tmp_path, *assignments, "dit.learning_rate=1e-9", "dit.muon_learning_rate=0")
    run.vae()
    assert_same(read_state(tmp_path / "vae.safetensors"), load_vae(folder, read_card(folder)).state_dict())
    run.latents()
    run.dit()
    weights = read_state(tmp_path / "dit.safetensors")
    before = load_dit(folder, read_card(folder)).state_dict()
    for name, value in before.items():
        torch.testing.assert_close(weights[f"dit.{name}"], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(Exception, match=r"init_from: the vae of .* does not fit model\.vae"):
        stages(tmp_path / "b", *assignments, "model.vae.widths=[20, 12, 8]").vae()


def test_a_decoder_is_trained_alone_and_resumes_on_the_same_encoder(finished: Path, tmp_path: Path) -> None:
    folder = finished / "model" / "tiny"
    alone = ["vae.train_encoder=false", "precision=bf16", "vae.decay_share=0"]
    for steps in (2, 4):
        stages(tmp_path / "twice", f"init_from={folder}", *alone, f"vae.steps={steps}").vae()
    stages(tmp_path / "once", f"init_from={folder}", *alone, "vae.steps=4").vae()
    before = load_vae(folder, read_card(folder)).state_dict()
    after = read_state(tmp_path / "once" / "vae.safetensors")
    assert_same(after, read_state(tmp_path / "twice" / "vae.safetensors"))
    kept = [name for name in before if not name.startswith("decoder.")]
    assert_same({name: after[name] for name in kept}, {name: before[name] for name in kept})
    assert not torch.equal(after["decoder.0.weight"], before["decoder.0.weight"])


def test_a_model_folder_that_was_replaced_meanwhile_is_not_gone_on_from(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    shutil.copytree(finished / "model" / "tiny", folder)
    begun = [f"init_from={folder}", "vae.train_encoder=false"]
    stages(tmp_path, *begun, "vae.steps=2").vae()
    card = read_card(folder)
    card["files"]["vae"]["sha256"] = "0" * 64
    write_card(folder, card)
    with pytest.raises(ConflictError, match=r"init_from: tiny [0-9a-f]+ -> tiny [0-9a-f]+"):
        stages(tmp_path, *begun, "vae.steps=3").vae()


def test_another_decoder_leaves_the_latents_and_what_learnt_them_valid(finished: Path, tmp_path: Path) -> None:
    begun = [f"init_from={finished / 'model' / 'tiny'}", "dit.steps=1"]
    stages(tmp_path, *begun, "vae.steps=0").vae()
    stages(tmp_path, *begun).latents()
    stages(tmp_path, *begun).dit()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").rglob("*.safetensors")}
    decoder = tmp_path / "decoder"
    stages(decoder, *begun, "vae.steps=2", "vae.train_encoder=false").vae()
    shutil.copy(decoder / "vae.safetensors", tmp_path)
    stages(tmp_path, *begun).latents()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").rglob("*.safetensors")} == shards
    stages(tmp_path, *begun).dit()
    stages(tmp_path, *begun).export(tmp_path / "model")
    exported = load_vae(tmp_path / "model", read_card(tmp_path / "model")).state_dict()["decoder.0.weight"]
    trained = read_state(decoder / "vae.safetensors")["decoder.0.weight"]
    torch.testing.assert_close(exported, trained, rtol=1e-3, atol=1e-4)


def make_videos(videos: Path) -> None:
    """Two videos of a second and a half, and a file that is none."""
    videos.mkdir()
    for number, pattern in enumerate(("testsrc", "testsrc2")):
        source = f"{pattern}=size=64x48:rate=12:duration=1.5"
        path = videos / f"{number}.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source, str(path)]
        subprocess.run(command, check=True)
        path.with_suffix(".txt").write_text(f"pattern {number}")
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "broken.txt").write_text("nothing")


def test_videos_too_short_for_a_stage_are_refused_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_videos(tmp_path / "videos")
    monkeypatch.setattr(stages_module, "train", lambda *arguments: pytest.fail("the training began"))
    data = ["data.kind=folder", f"data.folder={tmp_path / 'videos'}", "vae.lengths=[9, 33]"]
    with pytest.raises(ConfigurationError, match="no video is long enough for 33 frames at 8 fps"):
        stages(tmp_path / "run", *data).vae()


def test_a_folder_whose_captions_change_is_not_trained_on_further(tmp_path: Path) -> None:
    make_videos(tmp_path / "videos")
    data = ["data.kind=folder", f"data.folder={tmp_path / 'videos'}"]
    stages(tmp_path / "run", *data, "vae.steps=2").vae()
    (tmp_path / "videos" / "0.txt").write_text("something else\n", encoding="utf-8")
    with pytest.raises(ConflictError, match=r"data\.content_sha256: [0-9a-f]+ -> [0-9a-f]+"):
        stages(tmp_path / "run", *data, "vae.steps=3").vae()


def test_a_folder_of_videos_is_trained_on(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    make_videos(videos)
    few = ["vae.steps=2", "dit.steps=3", "dit.buckets.0.num_clips=4", "dit.buckets.1.num_clips=4", "run.sheet_clips=1"]
    few += ["card.num_frames={'1': 17}"]  # longer than any of the videos: nothing but the model makes clips of it
    result = CliRunner().invoke(
        app, ["all", "tiny", "--videos", str(videos), "--out", str(tmp_path / "run"), *options(*few)]
    )
    assert result.exit_code == 0, result.output
    assert "2 videos to train on, 0 held out, 1 files skipped" in result.output
    assert "skipped broken.mp4: it cannot be decoded" in result.output
    shard = next((tmp_path / "run" / "latents").glob("9x32x32-*/*.safetensors"))
    assert set(read_state(shard)) == {"latents", "last", "continues"}, "nobody knows where the objects are"
    card = read_card(tmp_path / "run" / "model" / "tiny-videos")
    assert (card["id"], card["title"]) == ("tiny-videos", "Tiny on videos")
    assert str(tmp_path) not in json.dumps(card), "a card that is shared says nothing of its maker's disk"
    moved = videos.rename(tmp_path / "moved")
    again = CliRunner().invoke(
        app, ["dit", "tiny", "--videos", str(moved), "--out", str(tmp_path / "run"), *options(*few)]
    )
    assert "dit.safetensors is finished" in again.output.replace("\n", ""), again.output
    assert card["description"] == "Trained on the videos of videos."
    assert card["provenance"]["recipe"]["dit"]["data"]["kind"] == "folder"
