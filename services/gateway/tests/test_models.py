"""Models come and go while the gateway runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def added(models_dir: Path) -> Iterator[Path]:
    """A folder for one more model, gone again afterwards."""
    folder = models_dir / "added"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def listed(inside: Any) -> list[str]:
    return [model["id"] for model in inside.request("GET", "/v1/models").json()["data"]]


def test_a_model_that_is_added_is_listed_and_used_without_a_restart(inside: Any, models_dir: Path, added: Path) -> None:
    assert listed(inside) == ["tiny"]
    card = (models_dir / "tiny/card.yaml").read_text()
    (added / "card.yaml").write_text(card.replace("id: tiny", "id: added"))
    assert listed(inside) == ["added", "tiny"]
    assert inside.request("GET", "/v1/models/added").json()["id"] == "added"
    answer = inside.request("POST", "/v1/videos", json={"prompt": "x", "model": "added"})
    assert (answer.status_code, answer.json()["model"]) == (202, "added")
    (added / "card.yaml").unlink()
    assert listed(inside) == ["tiny"]


def test_a_broken_card_takes_no_other_model_down(inside: Any, added: Path) -> None:
    (added / "card.yaml").write_text("id: [")
    assert listed(inside) == ["tiny"]
    assert inside.request("POST", "/v1/videos", json={"prompt": "x", "model": "tiny"}).status_code == 202


def test_a_model_whose_card_is_broken_is_there_but_cannot_be_used(inside: Any, added: Path) -> None:
    (added / "card.yaml").write_text("id: [")
    for answer in (
        inside.request("POST", "/v1/videos", json={"prompt": "x", "model": "added"}),
        inside.request("GET", "/v1/models/added"),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (503, "unavailable", "model")
        assert "added" in error["message"]
        assert "card is broken" in error["message"]
        assert str(added) not in error["message"]
    assert inside.request("GET", "/v1/models/gone").status_code == 404


def test_a_model_says_what_a_request_may_pick(inside: Any) -> None:
    shown = inside.request("GET", "/v1/models/tiny").json()
    assert (shown["solvers"], shown["temporal_attention"]) == (["euler", "heun", "rk4"], ["full"])
    assert (shown["defaults"]["solver"], shown["defaults"]["temporal_attention"]) == ("euler", "full")
