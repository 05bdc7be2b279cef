"""Files and batches exactly as they go over the wire."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from vitascope_gateway import batches, files
from vitascope_gateway.batches import ENDPOINT, WINDOW, BatchState


class FileObject(BaseModel):
    """One file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    expires_at: int = Field(description="When it is deleted, Unix seconds.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    """One page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(BaseModel):
    """What is wrong with the file of a batch."""

    code: str
    message: str
    param: str | None
    line: int | None = Field(description="Its number, from 1.")


class BatchErrors(BaseModel):
    """Why a batch failed: the first 20 of what is wrong with its file."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """What has become of the lines."""

    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    """One batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Literal["/v1/videos"] = ENDPOINT
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = WINDOW
    status: BatchState
    output_file_id: str | None = Field(description="The lines that made a video.")
    error_file_id: str | None = Field(description="All others.")
    created_at: int = Field(description="Unix seconds, as all that follow.")
    in_progress_at: int | None
    expires_at: int = Field(description="When lines that are not over expire.")
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str]


class BatchList(BaseModel):
    """One page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def file(found: files.File) -> FileObject:
    """Show a file to its tenant."""
    return FileObject(
        id=found.file_id,
        bytes=found.num_bytes,
        created_at=found.created_at_ms // 1000,
        expires_at=found.expires_at_ms // 1000,
        filename=found.filename,
        purpose=files.INPUT if found.purpose == files.INPUT else files.OUTPUT,
    )


def file_list(found: Sequence[files.File], has_more: bool) -> FileList:
    """Show one page."""
    first, last = (found[0].file_id, found[-1].file_id) if found else (None, None)
    return FileList(data=[file(one) for one in found], first_id=first, last_id=last, has_more=has_more)


def batch(found: batches.Batch) -> BatchObject:
    """Show a batch to its tenant."""
    ended = {found.state: _seconds(found.ended_at_ms)}
    return BatchObject(
        id=found.batch_id,
        errors=BatchErrors(data=[_error(one) for one in found.errors]) if found.errors else None,
        input_file_id=found.input_file_id,
        status=found.state,
        output_file_id=found.output_file_id,
        error_file_id=found.error_file_id,
        created_at=found.created_at_ms // 1000,
        in_progress_at=_seconds(found.in_progress_at_ms),
        expires_at=found.deadline_at_ms // 1000,
        finalizing_at=_seconds(found.finalizing_at_ms),
        completed_at=ended.get(BatchState.COMPLETED),
        failed_at=ended.get(BatchState.FAILED),
        expired_at=ended.get(BatchState.EXPIRED),
        cancelling_at=_seconds(found.cancelling_at_ms),
        cancelled_at=ended.get(BatchState.CANCELLED),
        request_counts=RequestCounts(total=found.num_lines, completed=found.num_completed, failed=found.num_failed),
        metadata=dict(found.labels),
    )


def batch_list(found: Sequence[batches.Batch], has_more: bool) -> BatchList:
    """Show one page."""
    first, last = (found[0].batch_id, found[-1].batch_id) if found else (None, None)
    return BatchList(data=[batch(one) for one in found], first_id=first, last_id=last, has_more=has_more)


def _error(found: Any) -> BatchError:
    return BatchError(code=found["code"], message=found["message"], param=found["param"], line=found["line"])


def _seconds(milliseconds: int | None) -> int | None:
    return None if milliseconds is None else milliseconds // 1000
