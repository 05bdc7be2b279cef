"""The stages of a run, each from the files of those before it to a file of its own, all below one folder:

    vae.safetensors         the averaged VAE, fp32, with the statistics of its latents        stage vae
    latents/                the clips of each bucket, encoded by that VAE                     stage latents
    dit.safetensors         averaged text encoder and transformer, fp32                       stage dit
    vae/, dit/              checkpoint, metrics.jsonl and contact sheets of the training
    videos.json             what is known of the files of a video folder

The stage `export` writes a model folder wherever it is told to, and `sheet` draws clips of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from vitascope_common.errors import ConfigurationError, ConflictError
from vitascope_common.registry_cards import CARD_FILE, load_card
from vitascope_models.dit import DiT
from vitascope_models.load import load_dit, load_text_encoder, load_vae
from vitascope_models.text import TextEncoder
from vitascope_models.vae import VAE
from vitascope_trainer.checkpoints import read_account, read_state, remove_unfinished, state_sha256, write_state
from vitascope_trainer.config import FolderData, Mixture, Recipe, differences
from vitascope_trainer.export import card_defaults, export, read_card
from vitascope_trainer.folder import FolderSource, open_folder
from vitascope_trainer.generation import Parts, Settings, generate
from vitascope_trainer.latents import (
    Batch,
    CachedLatents,
    CacheLayout,
    Encoder,
    FreshLatents,
    Latents,
    cache_layout,
    encode_cache,
    held_out_batch,
)
from vitascope_trainer.loop import Interrupted, Signals, train
from vitascope_trainer.processes import Group
from vitascope_trainer.progress import Reporter
from vitascope_trainer.sheets import contact_sheet, modules_of
from vitascope_trainer.sources import Bucket, Source, WorldSource
from vitascope_trainer.train_dit import DitTask, Student
from vitascope_trainer.train_vae import VaeTask

Module = TypeVar("Module", bound=nn.Module)
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Stages:
    """A recipe, the folder of its run, and the processes that run it."""

    def __init__(self, recipe: Recipe, out: Path, group: Group, reporter: Reporter) -> None:
        self._recipe = recipe
        self._out = out
        self._group = group
        self._reporter = reporter
        self._dtype = _DTYPES[recipe.precision]

    def vae(self) -> None:
        """Train the VAE, or take over that of `init_from` where the recipe says no steps."""
        recipe = self._recipe
        source, held_out = self._sources("vae")
        settings = self._settings({"seed", "precision", "init_from"}, "vae", source) | {
            "model": {"vae": recipe.model.vae},
            "vae": recipe.vae.model_dump(mode="json", exclude={"steps"}),
        }
        if self._is_done("vae", settings, recipe.vae.steps):
            return
        vae = self._new(VAE, "vae")
        if recipe.vae.steps == 0:
            if self._group.is_first:
                self._write_result("vae", vae.state_dict(), settings, {}, 0)
            self._group.wait()
            return
        task = VaeTask(vae, recipe.vae, source, held_out, recipe.seed, self._group.device, self._dtype)
        trained = train(task, settings, self._out / "vae", recipe.run, self._group, self._reporter)
        if self._group.is_first:
            self._write_result(
                "vae", task.finished(trained.averages).state_dict(), settings, trained.figures, recipe.vae.steps
            )
        self._group.wait()

    def latents(self) -> None:
        """Encode what the latents cache lacks; needs the VAE. Without a cache in the recipe there is nothing to do."""
        if self._recipe.dit.latents == "fresh":
            self._reporter.say("latents: the recipe encodes while it trains (dit.latents=fresh); nothing to do.")
            return
        source, _ = self._sources("dit")
        encoder = self._encoder()
        layouts = self._layouts(source)
        total = sum(layout.num_clips for layout in layouts.values())
        done = 0

        def report(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            self._reporter.advance(done * self._group.num_processes)
            if before // 500 != done // 500:
                self._reporter.say(f"latents clips={min(total, done * self._group.num_processes)}/{total}")
            if signals.received:
                raise Interrupted(signals.received, "latents", None)

        with Signals().noted() as signals, self._reporter.stage("latents", total, 0):
            for bucket, layout in layouts.items():
                if self._group.is_first:
                    remove_unfinished(layout.folder)
                self._group.wait()
                encode_cache(layout, source, bucket, encoder, self._group, report)
        self._group.wait()

    def dit(self) -> None:
        """Train text encoder and transformer; needs the VAE, and the cache where the recipe has one."""
        recipe = self._recipe
        source, held_out = self._sources("dit")
        settings = self._settings({"seed", "precision", "init_from", "model", "shard_clips"}, "dit", source) | {
            "dit": recipe.dit.model_dump(mode="json", exclude={"steps"}),
            "encoder_sha256": self._encoder_sha256(),
        }
        if self._is_done("dit", settings, recipe.dit.steps):
            return
        latents: Latents
        if recipe.dit.latents == "cached":
            latents = CachedLatents(source, self._layouts(source))
        else:
            stage = recipe.dit
            latents = FreshLatents(
                source, self._encoder(), stage.window_clips, stage.fresh_clips, stage.num_micro_batches
            )
        text_encoder, dit = self._new(TextEncoder, "text_encoder"), self._new(DiT, "dit")
        torch.manual_seed(recipe.seed)
        student = Student(text_encoder, dit, source.classes)

        def held_out_clips() -> Batch | None:
            if held_out is None or recipe.dit.num_held_out == 0:
                return None
            return held_out_batch(held_out, recipe.dit.first_bucket, self._encoder(), recipe.dit.num_held_out)

        def draw(averages: Mapping[str, Tensor], num_clips: int) -> Image.Image | None:
            return self._drawn(averages, num_clips, held_out or source)

        task = DitTask(
            student,
            recipe.dit,
            source,
            latents,
            held_out_clips,
            draw,
            recipe.seed,
            self._group.device,
            self._dtype,
            has_text_steps=recipe.init_from is None,
            compile_blocks=recipe.run.compile_blocks,
        )
        trained = train(task, settings, self._out / "dit", recipe.run, self._group, self._reporter)
        if self._group.is_first:
            kept = {name: value for name, value in trained.averages.items() if not name.startswith("heads.")}
            self._write_result("dit", kept, settings, trained.figures, recipe.dit.steps)
        self._group.wait()

    def export(self, folder: Path) -> None:
        """Write the model folder; needs what the stages before made."""
        if not self._group.is_first:
            return
        averages = self._averages()
        accounts = {stage: read_account(self._out / f"{stage}.safetensors") for stage in ("vae", "dit")}
        source, _ = self._sources("dit")
        card = export(self._recipe, self._vae(), averages, source, accounts, folder)
        for name, file in card["files"].items():
            self._reporter.say(f"{name}: {folder / file['path']} {file['num_bytes']} bytes sha256 {file['sha256']}")

    def sheet(self, path: Path) -> None:
        """Draw clips of captions that training never saw, as far as the data have such."""
        if not self._group.is_first:
            return
        averages = self._averages()
        source, held_out = self._sources("dit")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drawn(averages, self._recipe.run.sheet_clips, held_out or source).save(path)
        self._reporter.say(f"sheet: {path}")

    def _drawn(self, averages: Mapping[str, Tensor], num_clips: int, source: Source) -> Image.Image:
        text_encoder, dit = modules_of(averages, self._recipe.model)
        defaults, bucket = card_defaults(self._recipe)
        prompts = [source.said(index, self._recipe.dit.first_bucket, None).text for index in range(num_clips)]
        settings = Settings.of(defaults, bucket.width, bucket.height, bucket.num_frames, defaults.shift)
        clips = generate(Parts(text_encoder, dit, self._vae()), prompts, range(num_clips), settings)
        return contact_sheet(list(clips), prompts)

    def _sources(self, stage: str) -> tuple[Source, Source | None]:
        """Open what a stage trains on, and what is held out from it."""
        recipe = self._recipe
        if isinstance(recipe.data, FolderData):
            data = recipe.data
            memo = self._out / "videos.json"
            train_on, held_out, found = open_folder(data.folder, data.fps, data.held_out_share, recipe.seed, memo)
            self._reporter.say(
                f"data: {len(train_on.videos)} videos to train on, {len(held_out.videos) if held_out else 0} held out, "
                f"{len(found.skipped)} files skipped"
            )
            for name, reason in found.skipped.items():
                self._reporter.say(f"data: skipped {name}: {reason}")
            lengths = recipe.vae.lengths if stage == "vae" else [each.num_frames for each in recipe.dit.buckets]
            train_on.fitting(max(lengths))  # refuses what would come up in the middle of the training
            measured = max(lengths) if stage == "vae" else recipe.dit.first_bucket.num_frames
            if held_out is not None and held_out.longest_s < held_out.seconds(measured):
                held_out = None
            return train_on, held_out
        mixture: Mixture = recipe.data.vae if stage == "vae" else recipe.data.dit
        return (
            WorldSource(recipe.seed, mixture.mix, mixture.later, mixture.later_from),
            WorldSource(recipe.seed, mixture.mix, held_out=True),
        )

    def _new(self, kind: type[Module], name: str) -> Module:
        """Build a module, fp32, from nothing or from `init_from`; the same in every process."""
        recipe = self._recipe
        torch.manual_seed(recipe.seed)
        module = kind(**getattr(recipe.model, name))
        if recipe.init_from is not None:
            load: Mapping[str, Callable[[Path, Mapping[str, Any]], object]] = {
                "vae": load_vae,
                "text_encoder": load_text_encoder,
                "dit": load_dit,
            }
            try:
                loaded = load[name](recipe.init_from, read_card(recipe.init_from))
                if not isinstance(loaded, kind):
                    raise ConfigurationError(f"init_from: the {name} of {recipe.init_from} is not one that we train.")
                module.load_state_dict(loaded.state_dict())
            except RuntimeError as error:
                raise ConfigurationError(
                    f"init_from: the {name} of {recipe.init_from} does not fit model.{name}."
                ) from error
        return module

    def _settings(self, fields: set[str], stage: str, source: Source) -> dict[str, Any]:
        """Give the fields, and what of `data` matters to a stage; a folder by what lies in it, not by its path."""
        data = self._recipe.data.model_dump(mode="json", exclude={"vae", "dit", "folder"} - {stage})
        if isinstance(source, FolderSource):
            data["content_sha256"] = source.content_sha256
        settings = self._recipe.model_dump(mode="json", include=fields) | {"data": data}
        return settings | ({"init_from": self._begun_with()} if "init_from" in fields else {})

    def _begun_with(self) -> str | None:
        """Name the model of `init_from` by what it is, and not by where it lies."""
        folder = self._recipe.init_from
        if folder is None:
            return None
        if not (folder / CARD_FILE).is_file():
            raise ConfigurationError(f"init_from: {folder} is no model folder.")
        card = load_card(folder / CARD_FILE)
        return f"{card.id} {card.sha256}"

    def _is_done(self, stage: str, settings: Mapping[str, Any], steps: int) -> bool:
        path = self._out / f"{stage}.safetensors"
        if not path.exists():
            return False
        account = read_account(path)
        is_done = account.get("settings") == settings and account.get("steps") == steps
        if is_done:
            self._reporter.say(f"{stage}: {path} is finished.")
        return is_done

    def _write_result(
        self,
        stage: str,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        figures: Mapping[str, Any],
        steps: int,
    ) -> None:
        account = {"settings": settings, "steps": steps} | {
            name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()
        }
        write_state(self._out / f"{stage}.safetensors", tensors, account)

    def _vae_path(self) -> Path:
        path = self._out / "vae.safetensors"
        if not path.exists():
            raise ConfigurationError(f"There is no {path}: run the stage vae first.")
        return path

    def _encoder_sha256(self) -> str:
        """Hash what decides a clip's latents: another decoder makes them no others."""
        return state_sha256(self._vae_path(), ("encoder.", "latent_"))

    def _vae(self) -> VAE:
        vae = VAE(**self._recipe.model.vae)  # type: ignore[arg-type]
        try:
            vae.load_state_dict(read_state(self._vae_path()))
        except RuntimeError as error:
            raise ConfigurationError(f"{self._vae_path()} does not fit model.vae.") from error
        return vae.eval().requires_grad_(False)

    def _encoder(self) -> Encoder:
        return Encoder(self._vae(), self._group.device, self._dtype)

    def _averages(self) -> dict[str, Tensor]:
        """Read what the stage dit made, having made sure that encoder and recipe's model are those it was made for.

        Raises:
            ConfigurationError: it is not there, or says nothing about how it was made.
            ConflictError: it was made for another encoder or another model; lists what differs.
        """
        path, vae_path = self._out / "dit.safetensors", self._vae_path()
        if not path.exists():
            raise ConfigurationError(f"There is no {path}: run the stage dit first.")
        settings = read_account(path).get("settings", {})
        if "encoder_sha256" not in settings or "settings" not in read_account(vae_path):
            raise ConfigurationError(f"{vae_path} and {path} do not say how they were trained.")
        different = differences({"model": settings["model"]}, self._recipe.model_dump(mode="json", include={"model"}))
        if different:
            raise ConflictError(f"{path} is of another model than the recipe's: " + "; ".join(different) + ".")
        if settings["encoder_sha256"] != self._encoder_sha256():
            raise ConflictError(
                f"{path} was trained on the latents of another encoder than that of the present {vae_path}: bring that "
                "VAE back, or train in another folder."
            )
        return read_state(path)

    def _layouts(self, source: Source) -> dict[Bucket, CacheLayout]:
        encoder_sha256 = self._encoder_sha256()
        return {
            each.bucket: cache_layout(
                self._out / "latents",
                encoder_sha256,
                self._recipe.precision,
                source,
                each.bucket,
                each.num_clips,
                self._recipe.shard_clips,
            )
            for each in self._recipe.dit.buckets
        }
