"""Protobuf <-> domain for what every service says about work: artifacts, checkpoints, tasks."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from vitascope_common.errors import InternalError
from vitascope_common.jobs import (
    Artifact,
    Checkpoint,
    FinishParams,
    GenerateParams,
    JsonParams,
    Params,
    Progress,
    Reference,
    Task,
)
from vitascope_proto.v1 import jobs_pb2


def artifact_to_proto(artifact: Artifact) -> jobs_pb2.Artifact:
    """Translate an artifact."""
    return jobs_pb2.Artifact(**asdict(artifact))


def artifact_from_proto(message: jobs_pb2.Artifact) -> Artifact:
    """Translate an artifact back."""
    return Artifact(message.name, message.role, message.media_type, message.key, message.sha256, int(message.num_bytes))


def artifacts_from_proto(messages: Iterable[jobs_pb2.Artifact]) -> tuple[Artifact, ...]:
    """Translate a list of artifacts back."""
    return tuple(artifact_from_proto(message) for message in messages)


def checkpoint_to_proto(checkpoint: Checkpoint) -> jobs_pb2.Checkpoint:
    """Translate a checkpoint."""
    return jobs_pb2.Checkpoint(
        done=checkpoint.done,
        unit=checkpoint.unit,
        artifacts=[artifact_to_proto(artifact) for artifact in checkpoint.artifacts],
    )


def checkpoint_from_proto(message: jobs_pb2.Checkpoint) -> Checkpoint:
    """Translate a checkpoint back."""
    return Checkpoint(int(message.done), message.unit, artifacts_from_proto(message.artifacts))


def progress_to_proto(progress: Progress) -> jobs_pb2.Progress:
    """Translate a progress."""
    return jobs_pb2.Progress(**asdict(progress))


def progress_from_proto(message: jobs_pb2.Progress) -> Progress:
    """Translate a progress back."""
    return Progress(int(message.done), int(message.total), message.unit, message.phase)


def task_to_proto(task: Task) -> jobs_pb2.Task:
    """Translate a task, parameters included."""
    params: dict[str, Any] = {}
    if isinstance(task.params, GenerateParams):
        params["generate"] = jobs_pb2.GenerateParams(**asdict(task.params))
    elif isinstance(task.params, JsonParams):
        params["json_params"] = json.dumps(dict(task.params.values))
    else:
        params["finish"] = jobs_pb2.FinishParams(**asdict(task.params))
    checkpoints = [checkpoint_to_proto(checkpoint) for checkpoint in task.checkpoints]
    return jobs_pb2.Task(
        task_id=task.task_id,
        job_id=task.job_id,
        tenant_id=task.tenant_id,
        kind=task.kind,
        stage=task.stage,
        shard=task.shard,
        executor=task.executor,
        pool=task.pool,
        attempt=task.attempt,
        inputs=[artifact_to_proto(artifact) for artifact in task.inputs],
        checkpoint=checkpoints[0] if checkpoints else None,
        older_checkpoints=checkpoints[1:],
        yieldable=task.yieldable,
        traceparent=task.traceparent,
        created_at_ms=task.created_at_ms,
        affinity=task.affinity,
        group_size=task.group_size,
        **params,
    )


def _params_from_proto(message: jobs_pb2.Task) -> Params:
    which = message.WhichOneof("params")
    if which == "generate":
        return _generate_from_proto(message.generate)
    if which == "finish":
        source: Any = message.finish
        return FinishParams(**{name: getattr(source, name) for name in FinishParams.__dataclass_fields__})
    if which == "json_params":
        return JsonParams(json.loads(message.json_params))
    raise InternalError(f"task {message.task_id} has parameters of a kind that this build does not know: {which}")


def _generate_from_proto(message: Any) -> GenerateParams:
    values = {name: getattr(message, name) for name in GenerateParams.__dataclass_fields__}
    values["references"] = tuple(
        Reference(one.role, artifact_from_proto(one.artifact), one.strength) for one in message.references
    )
    if not message.HasField("guidance_start"):  # the sender is older than the field
        del values["guidance_start"]
    return GenerateParams(**values)


def task_from_proto(message: jobs_pb2.Task) -> Task:
    """Translate a task back. Raises InternalError for parameters that this build does not know."""
    newest = [checkpoint_from_proto(message.checkpoint)] if message.HasField("checkpoint") else []
    older = [checkpoint_from_proto(checkpoint) for checkpoint in message.older_checkpoints]
    return Task(
        task_id=message.task_id,
        job_id=message.job_id,
        tenant_id=message.tenant_id,
        kind=message.kind,
        stage=message.stage,
        shard=message.shard,
        executor=message.executor,
        pool=message.pool,
        attempt=int(message.attempt),
        params=_params_from_proto(message),
        inputs=artifacts_from_proto(message.inputs),
        checkpoints=tuple(newest + older),
        yieldable=message.yieldable,
        traceparent=message.traceparent,
        created_at_ms=int(message.created_at_ms),
        affinity=dict(message.affinity),
        group_size=max(1, message.group_size),
    )
