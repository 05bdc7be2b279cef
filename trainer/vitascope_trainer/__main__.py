"""Entry of `vitascope-train`: the stages of a run, their arguments and their help."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from vitascope_common.errors import ConfigurationError, UnavailableError, VitascopeError
from vitascope_trainer.config import FolderData, Recipe, overridden
from vitascope_trainer.launch import LAUNCHED, launch, sole_writer
from vitascope_trainer.recipes import RECIPES, own_card, recipe_named

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train a video model: `vitascope-train all tiny --out runs/tiny` tries everything in a minute. Every stage "
        "continues where it was interrupted when the same command is given again."
    ),
)
EXIT_FAILED, EXIT_USAGE = 1, 2

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="`vitascope-train recipes` lists them.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the run: checkpoints, latents, metrics, results.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a field, as `vitascope-train show` names them."),
]
VideosOption = Annotated[
    Path | None, typer.Option(help="Train on this folder of video files and captions instead of drawn clips.")
]
ProcessesOption = Annotated[
    int, typer.Option(min=1, help="Processes that train together on this machine; torchrun starts them elsewhere.")
]
StepsOption = Annotated[
    int | None, typer.Option(min=0, help="Steps in all; a run may be resumed with more than it began with.")
]
ModelOption = Annotated[Path, typer.Option("--model", help="Model folder to write.")]
SheetOption = Annotated[Path | None, typer.Option("--sheet", help="PNG to write; sheet.png in the run's folder.")]


@app.command()
def recipes() -> None:
    """List the recipes."""
    for name, function in RECIPES.items():
        typer.echo(f"{name:20}{(function.__doc__ or '').strip()}")


@app.command()
def show(recipe: RecipeArgument, assignments: SetOption = None, videos: VideosOption = None) -> None:
    """Print a recipe with every field, as YAML."""
    values = _recipe(recipe, assignments or [], videos).model_dump(mode="json")
    typer.echo(yaml.safe_dump(values, sort_keys=False, width=120), nl=False)


@app.command()
def vae(
    recipe: RecipeArgument,
    out: OutOption,
    steps: StepsOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Train the VAE."""
    _run("vae", recipe, out, _with_steps("vae", steps, assignments), videos, processes)


@app.command()
def latents(
    recipe: RecipeArgument,
    out: OutOption,
    assignments: SetOption = None,
    videos: VideosOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Encode the clips that the transformer trains on."""
    _run("latents", recipe, out, assignments or [], videos, processes)


@app.command()
def dit(
    recipe: RecipeArgument,
    out: OutOption,
    steps: StepsOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Train text encoder and transformer."""
    _run("dit", recipe, out, _with_steps("dit", steps, assignments), videos, processes)


@app.command()
def export(
    recipe: RecipeArgument,
    out: OutOption,
    model: ModelOption,
    assignments: SetOption = None,
    videos: VideosOption = None,
) -> None:
    """Write the trained weights and their card into a model folder."""
    _run("export", recipe, out, assignments or [], videos, 1, model=model)


@app.command()
def sheet(
    recipe: RecipeArgument,
    out: OutOption,
    path: SheetOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
) -> None:
    """Draw clips of captions that training never saw."""
    _run("sheet", recipe, out, assignments or [], videos, 1, sheet_path=path)


@app.command(name="all")
def everything(
    recipe: RecipeArgument,
    out: OutOption,
    model: Annotated[Path | None, typer.Option("--model", help="Model folder to write; model/ID in --out.")] = None,
    path: SheetOption = None,
    assignments: SetOption = None,
    videos: VideosOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Run every stage: vae, latents, dit, export, sheet."""
    _run("all", recipe, out, assignments or [], videos, processes, model=model, sheet_path=path)


def _with_steps(stage: str, steps: int | None, assignments: Sequence[str] | None) -> list[str]:
    return [*(assignments or []), *([] if steps is None else [f"{stage}.steps={steps}"])]


def _recipe(name: str, assignments: Sequence[str], videos: Path | None) -> Recipe:
    recipe = recipe_named(name)
    if videos is not None:
        recipe = recipe.model_copy(update={"data": FolderData(folder=videos)})
    return own_card(overridden(recipe, assignments), recipe.card)


def _run(
    stage: str,
    name: str,
    out: Path,
    assignments: Sequence[str],
    videos: Path | None,
    num_processes: int,
    model: Path | None = None,
    sheet_path: Path | None = None,
) -> None:
    recipe = _recipe(name, assignments, videos)
    if stage in ("vae", "all"):
        recipe.check_vae()
    model_id = str(recipe.card.get("id", recipe.name))
    model_folder = model or out / "model" / model_id
    if stage in ("export", "all") and model_folder.name != model_id:
        raise ConfigurationError(
            f"--model: {model_folder} would be refused, as a model's folder bears its id: end it in {model_id}, or "
            f"--set card.id={model_folder.name}.",
            param="model",
        )
    command = [stage, name, "--out", str(out)]
    for each in assignments:
        command += ["--set", each]
    for option, value in (("--videos", videos), ("--model", model), ("--sheet", sheet_path)):
        command += [] if value is None else [option, str(value)]
    command += [] if num_processes == 1 else ["--processes", str(num_processes)]

    if num_processes > 1 and "WORLD_SIZE" not in os.environ:
        for part, training in (("vae", recipe.vae), ("dit", recipe.dit)):
            count = training.num_micro_batches
            if stage in (part, "all") and training.steps and count % num_processes:
                raise ConfigurationError(
                    f"{part}.num_micro_batches: {count} is no multiple of --processes {num_processes}: run the stage "
                    f"{part} by itself with fewer processes, or --set {part}.num_micro_batches={num_processes} for "
                    "larger batches."
                )
        with sole_writer(out):
            raise typer.Exit(launch(command, num_processes, os.environ))
    # Of several processes the one that launched them holds the folder, or, under torchrun, the first of them.
    is_first = os.environ.get("RANK", "0") == "0" and LAUNCHED not in os.environ
    is_writer = stage in ("vae", "latents", "dit", "all") and is_first
    with sole_writer(out) if is_writer else contextlib.nullcontext():
        _run_stages(stage, recipe, out, command, model_folder, sheet_path)


def _run_stages(
    stage: str, recipe: Recipe, out: Path, command: Sequence[str], model_folder: Path, sheet_path: Path | None
) -> None:
    # Only now: torch takes seconds to import, and neither `recipes` nor the launching process needs it.
    from vitascope_trainer.loop import Interrupted
    from vitascope_trainer.processes import joined
    from vitascope_trainer.progress import Reporter
    from vitascope_trainer.stages import Stages

    with joined(recipe.run.device, recipe.run.num_threads, os.environ) as group:
        reporter = Reporter(Console(), group.is_first)
        stages = Stages(recipe, out, group, reporter)
        try:
            if stage in ("vae", "all"):
                stages.vae()
            if stage in ("latents", "all"):
                stages.latents()
            if stage in ("dit", "all"):
                stages.dit()
            if stage in ("export", "all"):
                stages.export(model_folder)
            if stage in ("sheet", "all"):
                stages.sheet(sheet_path or out / "sheet.png")
        except Interrupted as error:
            reporter.say(f"{error} Resume with: {shlex.join(['vitascope-train', *command])}")
            raise typer.Exit(error.status) from None
        except UnavailableError as error:
            again = shlex.join(["vitascope-train", *command])
            raise UnavailableError(f"{error.message} Make room and resume with: {again}") from error


def main() -> None:
    """Run the command line; expected errors are told in one line."""
    try:
        app()
    except VitascopeError as error:
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"process {rank}: "
        typer.echo(f"{who}error [{error.code}]: {error.message}", err=True)
        raise SystemExit(EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED) from None


if __name__ == "__main__":
    main()
