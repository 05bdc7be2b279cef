"""A model that is brought while the stack runs can be asked for at once."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tests.conftest import PROMPT, Stack
from vitascope_cli.__main__ import app
from vitascope_cli.stack import default_models_dir
from vitascope_client import InvalidRequestError, Video


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """Give the folder of a model that no stack knows: the shipped one under a name of its own."""
    folder = tmp_path / "mini-other"
    folder.mkdir()
    (shipped,) = default_models_dir().glob("vita-mini-*")
    for file in shipped.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump({**card, "id": folder.name, "title": "Mini other"}))
    return folder


@pytest.mark.slow
def test_a_model_pulled_while_the_stack_runs_makes_a_video(another: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (shipped,) = default_models_dir().glob("vita-mini-*")
    (models / shipped.name).symlink_to(shipped)
    stack = Stack(tmp_path / "data", settings={"VITASCOPE_MODELS_DIR": str(models)})

    def ask() -> Video:
        return stack.client.videos.create(prompt=PROMPT, size="64x64", seconds="1", model=another.name)

    try:
        with pytest.raises(InvalidRequestError) as unknown:
            ask()
        assert unknown.value.param == "model"
        pulled = CliRunner().invoke(app, ["models", "pull", str(another), "--data-dir", str(stack.data_dir)])
        assert pulled.exit_code == 0, pulled.output
        assert another.name in {one.id for one in stack.client.models()}
        video = stack.client.videos.wait(ask().id)
        assert (video.status, video.model) == ("completed", another.name)
    finally:
        stack.close()
