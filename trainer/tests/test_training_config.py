"""Recipes: overrides by name, errors that name the field, and what the command line makes of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from vitascope_common.errors import ConfigurationError
from vitascope_trainer import __main__ as entry
from vitascope_trainer.__main__ import app, main
from vitascope_trainer.config import FolderData, WorldData, differences, overridden
from vitascope_trainer.export import card_defaults
from vitascope_trainer.recipes import RECIPES, recipe_named, tiny


def test_fields_are_set_by_name() -> None:
    recipe = overridden(tiny(), ["dit.steps=7", "dit.buckets.1.num_clips=5", "data.vae.two=0.5", "run.device=cpu"])
    assert recipe.dit.steps == 7
    assert [bucket.num_clips for bucket in recipe.dit.buckets] == [24, 5]
    assert isinstance(recipe.data, WorldData)
    assert recipe.data.vae.two == 0.5
    assert recipe.dit.buckets[0] == tiny().dit.buckets[0]


def test_another_kind_of_data_begins_anew() -> None:
    recipe = overridden(tiny(), ["data.kind=folder", "data.folder=clips", "data.fps=12"])
    assert isinstance(recipe.data, FolderData)
    assert recipe.data.fps == 12


@pytest.mark.parametrize(
    ("assignment", "name"),
    [
        ("dit.stepz=7", "dit.stepz"),
        ("dit.steps=many", "dit.steps"),
        ("vae.fresh_clips=0", "vae.fresh_clips"),
        ("optics.blur=1", "optics.blur"),
        ("dit.buckets.9.weight=1", "dit.buckets.9.weight"),
        ("dit.buckets.0.size=50x50", "dit.buckets.0"),
        ("dit.conditions.prefix=0.95", "dit.conditions"),
        ("data.dit.two=2", "data.dit.two"),
        ("data.fps=9", "data.fps"),
        ("run.device=tpu", "run.device"),
        ("vae.crop_px=64", "vae"),
        ("model.dit.latent_channels=9", "latent_channels"),
        ("dit.steps", "dit.steps"),
    ],
)
def test_an_error_names_the_field(assignment: str, name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        overridden(tiny(), [assignment])
    assert name in caught.value.message


def test_differences_are_listed_by_name() -> None:
    one, other = tiny().model_dump(mode="json"), overridden(tiny(), ["seed=4", "dit.ema=0.5"]).model_dump(mode="json")
    assert differences(one, other) == ["dit.ema: 0.999 -> 0.5", "seed: 0 -> 4"]
    assert differences(one, tiny().model_dump(mode="json")) == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_together(name: str) -> None:
    recipe = overridden(recipe_named(name), [])
    assert recipe.name == name
    assert recipe.card["id"] == name
    defaults, bucket = card_defaults(recipe)
    assert defaults.size in recipe.card["sizes"]  # type: ignore[operator]
    assert bucket in [each.bucket for each in recipe.dit.buckets]


def test_the_recipes_are_listed_and_shown() -> None:
    listed = CliRunner().invoke(app, ["recipes"]).output
    assert all(name in listed for name in RECIPES)
    shown = yaml.safe_load(CliRunner().invoke(app, ["show", "tiny", "--set", "dit.steps=3"]).output)
    assert shown["dit"]["steps"] == 3
    assert shown["card"]["id"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dit", "tiny", "--set", "dit.stepz=3"], "dit.stepz: there is no such field"),
        (["dit", "huge"], f"there are: {', '.join(RECIPES)}"),
        (["dit", "tiny", "--processes", "3"], "dit.num_micro_batches: 2 is no multiple of --processes 3"),
        (["dit", "tiny"], "run the stage vae first"),
        (["export", "tiny", "--model", "m/tiny"], "run the stage vae first"),
        (["export", "tiny", "--model", "m"], "end it in tiny, or --set card.id=m"),
    ],
)
def test_the_command_line_tells_what_is_wrong_in_one_line(
    arguments: list[str],
    words: str,
    tmp_path: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["vitascope-train", *arguments, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert words in told
    assert told.count("\n") == 1


def _documented() -> list[str]:
    """Give the commands that the documents tell people to type."""
    root = Path(__file__).parents[2]
    texts = [(root / name).read_text(encoding="utf-8") for name in ("docs/model.md", "trainer/README.md")]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line.startswith("vitascope-train ")]


@pytest.mark.parametrize("command", _documented())
def test_a_documented_command_begins_its_work(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entry, "_run_stages", lambda *given: begun.append(given))
    monkeypatch.setattr(entry, "launch", lambda *given: begun.append(given) or 0)
    found = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
    assert (found.exit_code, found.exception) == (0, None), found.exception
    assert len(begun) == (0 if command.startswith("vitascope-train recipes") else 1)


@pytest.mark.parametrize("assignment", ["vae.train_encoder=false", "vae.steps=0"])
def test_a_vae_that_begins_with_another_needs_to_be_told_which(assignment: str, tmp_path: Path) -> None:
    command = ["vae", "tiny", "--out", str(tmp_path / "run"), "--set", assignment]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ConfigurationError)
    assert "init_from, which is not said" in str(refused.exception)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_left_out_need_not_be_shared_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(entry, "launch", lambda *_: 0)
    command = ["all", "vita-mini-6", "--out", str(tmp_path), "--set", "init_from=somewhere", "--processes", "2"]
    refused = CliRunner().invoke(app, command)
    assert "vae.num_micro_batches: 1" in str(refused.exception)
    assert CliRunner().invoke(app, [*command, "--set", "vae.steps=0"]).exit_code == 0
