"""The Celery side of the benchmark `queue`: one task that does nothing. The broker is an argument of the worker."""

from celery import Celery

app = Celery("bench", backend=None)
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
)


@app.task(name="bench.noop")  # type: ignore[untyped-decorator]
def noop(task_id: str) -> None:
    """Do nothing."""
