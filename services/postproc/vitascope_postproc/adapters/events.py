"""The stages of post-processing as events of the job; they may be lost, so Redis away is logged and no more."""

import structlog
from redis import Redis

from vitascope_common import events, redis_clients
from vitascope_common.events import Event, EventType
from vitascope_common.jobs import Task

log = structlog.stdlib.get_logger("vitascope.postproc")


class StageEvents:
    """Says `postprocessing` with its stage."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def say(self, task: Task, stage: str) -> None:
        """Append an event under the task's attempt."""
        event = Event(task.job_id, EventType.POSTPROCESSING, {"stage": stage}, task=task.task_id, attempt=task.attempt)
        try:
            events.append(self._redis, event)
        except redis_clients.ERRORS as error:
            log.warning("event.lost", job=task.job_id, stage=stage, error=str(error))
