"""Command line: python -m vitascope_trainer --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Train, export and evaluate the built-in model.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--out", help="Folder of checkpoints; an interrupted run continues from them.")]


@app.callback()
def main() -> None:
    """Train, export and evaluate the built-in model."""


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="vae, or dit (which trains the text encoder along with it)")],
    out: Folder,
    minutes: Annotated[float, typer.Option(help="Wall time of the whole stage, earlier runs included.")] = 30.0,
    processes: Annotated[int, typer.Option(help="One-thread processes; 2 for two cores.")] = 2,
) -> None:
    """Train one stage; the learning rate follows the clock, so it ends well at any length."""
    from vitascope_trainer.processes import run

    if stage == "vae":
        from vitascope_trainer.train_vae import train_vae as chosen
    elif stage == "dit":
        from vitascope_trainer.train_dit import train_dit as chosen
    else:
        raise typer.BadParameter(f"no stage named {stage}", param_hint="stage")
    run(chosen, out, minutes, processes)


@app.command()
def export(
    out: Folder,
    model: Annotated[Path, typer.Option(help="Model folder to write.")] = Path("models/vita-mini-1"),
) -> None:
    """Write the trained weights and their card into a model folder."""
    from vitascope_trainer.export import export as write

    card = write(out, model)
    for name, file in card["files"].items():
        typer.echo(f"{name}: {file['path']} {file['num_bytes']} bytes sha256 {file['sha256']}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="Model folder to judge.")] = Path("models/vita-mini-1"),
    count: Annotated[int, typer.Option(help="Held-out prompts.")] = 32,
    seconds: Annotated[str, typer.Option(help="Clip lengths, comma-separated.")] = "2,4",
    steps: Annotated[int, typer.Option(help="Sampling steps; 0 takes the card's.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    sheet: Annotated[Path | None, typer.Option(help="PNG of sixteen clips; the length is added to its name.")] = None,
    record: Annotated[bool, typer.Option(help="Write the scores into the card.")] = False,
) -> None:
    """Score a model on prompts that training never showed, and print a table and JSON."""
    import json

    import torch

    from vitascope_trainer.evaluate import evaluate as measure

    torch.set_num_threads(threads)
    table = measure(model, count, seconds.split(","), steps or None, sheet, record)
    for name, row in table.items():
        typer.echo(f"{name:32}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    typer.echo(json.dumps(table))


if __name__ == "__main__":
    app()
