"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

THIS_STACK = "The stack"
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="VITASCOPE_CLI_DATA_DIR",
        help="Folder that holds everything a local stack keeps. Default: ~/.local/share/vitascope.",
        rich_help_panel=THIS_STACK,
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        envvar="VITASCOPE_BASE_URL",
        help="Address of a stack elsewhere. Default: the one that `vitascope up` runs on the data folder.",
        rich_help_panel=THIS_STACK,
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="VITASCOPE_API_KEY",
        help="Its API key. Better in the variable than on the command line, where others can see it.",
        rich_help_panel=THIS_STACK,
    ),
]
ModelsDirOption = Annotated[
    Path | None,
    typer.Option(
        "--models-dir",
        envvar="VITASCOPE_MODELS_DIR",
        help="Folder of the models. Default: that of the stack on the data folder, else the repository's.",
        rich_help_panel=THIS_STACK,
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", dir_okay=False, help="Where to save the video.")]
ThumbnailOption = Annotated[
    Path | None, typer.Option("--thumbnail", dir_okay=False, help="Save the thumbnail (WebP) here as well.")
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job, as `vitascope jobs` shows it.")]
