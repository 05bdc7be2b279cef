"""What the scheduler reads from the environment."""

from typing import ClassVar

from pydantic import Field

from vitascope_common.settings import UsesBroker, UsesDatabase, UsesObjectStore, UsesRedis


class SchedulerSettings(UsesDatabase, UsesRedis, UsesBroker, UsesObjectStore):
    """Settings of the scheduler; the three periods are shortened by tests only."""

    service: ClassVar[str] = "scheduler"

    port: int = Field(default=50052, ge=0, le=65535)
    """gRPC; 0: any free port."""
    lease_ttl_ms: int = Field(default=10_000, ge=100)
    """A lease or a registration that is not renewed for this long is lost."""
    heartbeat_ms: int = Field(default=2_000, ge=10)
    """How often executors are asked to call Heartbeat."""
    tick_ms: int = Field(default=1_000, ge=10)
    """Period of dispatch and reaper; the reconciler runs every second one."""
    preempt_after_ms: int = Field(default=1_000, ge=0)
    """How long urgent work waits before patient work is asked to make way."""
    preempt_min_run_ms: int = Field(default=30_000, ge=0)
    """How long patient work runs, since it was last resumed, before it may be asked to make way."""
    work_retention_s: int = Field(default=24 * 3600, ge=0)
    """How long checkpoints and intermediate files of a finished job are kept, and jobs that their tenant deleted."""
    job_retention_s: int = Field(default=30 * 24 * 3600, ge=0)
    """How long finished jobs and their videos are kept; 0: for ever, unless their tenant deletes them."""
