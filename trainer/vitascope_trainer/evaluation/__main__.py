"""Command line: python -m vitascope_trainer.evaluation --help."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from vitascope_common.errors import ConfigurationError, VitascopeError
from vitascope_common.references import NEEDED
from vitascope_models.attention import TEMPORAL_MODES
from vitascope_models.vae import VAE
from vitascope_trainer.evaluation.given import WAYS, Continued, judge_given
from vitascope_trainer.evaluation.judging import (
    Judged,
    Report,
    consistency_of_sets,
    controls,
    judge,
    rates_of,
    real_clips,
    score_sets,
    vae_fidelity,
)
from vitascope_trainer.evaluation.loading import Model, check, load_model, seconds_per_clip, settings_of
from vitascope_trainer.evaluation.prompts import SETS, Prompt, all_prompts, first_prompts
from vitascope_trainer.evaluation.report import as_json, as_markdown, check_out, fill, sheet_bytes, with_scores
from vitascope_trainer.evaluation.scoring import Rate, score
from vitascope_trainer.export import read_card, write_card
from vitascope_trainer.generation import Settings
from vitascope_trainer.world.scenes import Mix

_SEED = 1_000
_NUM_TIMED = 3
_NUM_SHOWN = 2
_VAE_SIDES = (64, 96, 128)
_SHORT_FRAMES = 17
_EVALUATIONS = {"heun": 2, "rk4": 4}  # of the model in a step

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="Model folder, with its card.yaml.", exists=True, file_okay=False)],
    count: Annotated[
        int, typer.Option(help=f"Prompts in all; 0 takes all {sum(SETS.values())}, each set by its share.", min=0)
    ] = 0,
    size: Annotated[str | None, typer.Option(help="WxH in pixels; the card's default if not given.")] = None,
    frames: Annotated[int, typer.Option(help="Frames per clip, 4k+1; 0 takes the card's default.", min=0)] = 0,
    steps: Annotated[int, typer.Option(help="Sampling steps; 0 takes the card's default.", min=0)] = 0,
    attention: Annotated[str | None, typer.Option(help="full, causal or window; the card's if not given.")] = None,
    attention_count: Annotated[
        int, typer.Option(help="Plain prompts for the comparison of the three attentions; 0 leaves it out.", min=0)
    ] = 64,
    format_count: Annotated[
        int, typer.Option(help="Plain prompts for each other size, length and solver of the card; 0: none.", min=0)
    ] = 12,
    given_count: Annotated[
        int, typer.Option(help="Clips for each way to give frames: a first one, first and last, …; 0: none.", min=0)
    ] = 12,
    empty_count: Annotated[int, typer.Option(help="Clips of the empty prompt, a control.", min=1)] = 32,
    vae_count: Annotated[int, typer.Option(help="Clips for the VAE's PSNR and SSIM; 0 leaves it out.", min=0)] = 24,
    processes: Annotated[int, typer.Option(help="One-thread processes; 2 for two cores.", min=1)] = 2,
    out: Annotated[
        Path, typer.Option(help="Folder for evaluation.json, images/MODEL.webp and the table in model.md.")
    ] = Path("out/evaluation"),
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write the scores on the model's card too, and the attentions that passed if enough prompts compared"
            " them: that makes it another model to jobs that wait for it.",
        ),
    ] = False,
) -> None:
    """Score a model on prompts that training never showed, beside controls, and write tables and a contact sheet."""
    try:
        loaded = load_model(model)
        settings = settings_of(loaded.card, size, frames or None, steps or None, attention)
        check(loaded, settings)
        check_out(out)
    except VitascopeError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(2) from error
    prompts = all_prompts(count or None)
    empty_count = min(empty_count, len(prompts))
    plain = first_prompts("plain", attention_count)
    num_done = min(len(plain), sum(prompt.kind == "plain" for prompt in prompts))
    few = first_prompts("plain", format_count)
    formats = _formats(loaded, settings) if few else {}
    ways = [way for way, role in WAYS.items() if NEEDED[role] in loaded.card.capabilities]
    texts, scenes = [prompt.text for prompt in prompts], [prompt.scene for prompt in prompts]
    progress = _Progress(
        *(len(prompts), empty_count, len(TEMPORAL_MODES) * len(plain) - num_done),
        *(len(formats) * len(few), len(ways) * given_count),
    )
    judged = judge(model, texts, settings, _SEED, processes, progress=progress)
    # Plain prompts come first, so those of the comparison that are done had the seeds that it would give them.
    done = {settings.attention or loaded.card.attention.temporal: judged[:num_done]}
    readings, real = [each.reading for each in judged], real_clips(scenes, settings)
    steady = consistency_of_sets(readings, prompts)
    steady |= {f"{name}, real clips": row for name, row in consistency_of_sets(real, prompts).items()}
    report = Report(
        model_id=loaded.card.id,
        settings=settings,
        sets=score_sets(readings, prompts),
        controls=controls(model, readings, real, scenes, settings, empty_count, processes, progress),
        attention=_by_attention(model, settings, plain, done, processes, progress),
        formats={name: rates_of(model, few, each, _SEED, processes, progress) for name, each in formats.items()},
        given=judge_given(model, ways, settings, given_count, processes, progress),
        consistency=steady,
        fidelity=_fidelity(loaded.vae, vae_count) if vae_count else {},
        seconds_per_clip=seconds_per_clip(loaded, texts[:_NUM_TIMED], settings),
        num_threads=torch.get_num_threads(),
    )
    sheet = out / "images" / f"{loaded.card.id}.webp"
    sheet.write_bytes(_sheet(judged, prompts, [(way, each.first) for way, each in report.given.items()]))
    (out / "evaluation.json").write_text(as_json(report), encoding="utf-8")
    tables = as_markdown(report, f"images/{sheet.name}")
    fill(out / "model.md", tables)
    if card:
        write_card(model, with_scores(read_card(model), report))
    typer.echo(f"\n{tables}")


def _formats(model: Model, settings: Settings) -> dict[str, Settings]:
    """Give the card's other sizes and other lengths, and its other solvers with as many evaluations per clip.

    Those that cannot be judged are left out, and told.
    """
    card = model.card
    short, own, length = _SHORT_FRAMES, f"{settings.width_px}x{settings.height_px}", settings.num_frames
    other_sizes = [(size, length) for size in card.sizes if size != own]
    other_lengths = [(own, num_frames) for num_frames in card.num_frames.values() if num_frames != length]
    formats = {f"{size}, {num} frames": settings_of(card, size, num) for size, num in (*other_sizes, *other_lengths)}
    for solver in card.solvers:
        if solver != settings.solver:
            steps = max(1, settings.num_steps // _EVALUATIONS.get(solver, 1))
            name = f"{own}, {short} frames, {solver}, {steps} steps"
            formats[name] = replace(settings, num_frames=short, solver=solver, num_steps=steps)
    for name in list(formats):
        try:
            check(model, formats[name])
        except ConfigurationError as error:
            typer.echo(f"Left out, {name}: {error.message}", err=True)
            del formats[name]
    return formats


def _fidelity(vae: VAE, count: int) -> dict[str, dict[str, float]]:
    """Measure the VAE at several sizes, and at the largest on one small object that moves over a pattern."""
    found = {f"{side}x{side}": vae_fidelity(vae, side, Mix(), count) for side in _VAE_SIDES}
    largest = max(_VAE_SIDES)
    small = vae_fidelity(vae, largest, Mix(two=0.0, small_on_pattern=1.0), count)
    return found | {f"{largest}x{largest}, small on patterns": small}


def _by_attention(
    model: Path,
    settings: Settings,
    plain: Sequence[Prompt],
    done: Mapping[str, Sequence[Judged]],
    processes: int,
    progress: _Progress,
) -> dict[str, dict[str, Rate]]:
    """Score the same plain prompts with the same noise under each temporal attention.

    `done` has, by attention, the first of them that are made already.
    """
    table = {}
    for mode in TEMPORAL_MODES if plain else ():
        known = done.get(mode, ())
        texts = [prompt.text for prompt in plain[len(known) :]]
        chosen = replace(settings, attention=mode)
        made = judge(model, texts, chosen, _SEED + len(known), processes, progress=progress) if texts else []
        table[mode] = score([each.reading for each in (*known, *made)], [prompt.scene for prompt in plain])
    return table


def _sheet(judged: Sequence[Judged], prompts: Sequence[Prompt], given: Sequence[tuple[str, Continued]]) -> bytes:
    """Show the first prompts of every set, and the first clip for each way of giving frames."""
    kinds = dict.fromkeys(prompt.kind for prompt in prompts)
    chosen = [i for kind in kinds for i in [i for i, p in enumerate(prompts) if p.kind == kind][:_NUM_SHOWN]]
    rows = [(judged[i].thumbnails_THWC, prompts[i].text) for i in chosen]
    rows += [(each.thumbnails_THWC, f"{way}: {each.text}") for way, each in given]
    clips, captions = zip(*rows, strict=True)
    return sheet_bytes(clips, captions)


class _Progress:
    """Says on one line how many clips are done and how long the rest will take."""

    def __init__(self, *counts: int) -> None:
        self._total, self._done, self._began = sum(counts), 0, time.monotonic()

    def __call__(self, num_clips: int) -> None:
        self._done += num_clips
        left_s = (time.monotonic() - self._began) / self._done * (self._total - self._done)
        typer.echo(f"\r{self._done}/{self._total} clips, about {left_s / 60:.1f} min left ", nl=False, err=True)


if __name__ == "__main__":
    app()
