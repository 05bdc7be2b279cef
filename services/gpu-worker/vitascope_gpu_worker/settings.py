"""What the GPU worker reads from its environment."""

from typing import ClassVar

from pydantic import Field

from vitascope_common.settings import UsesModels, UsesObjectStore, UsesPrompt, UsesRedis, UsesScheduler


class GpuWorkerSettings(UsesRedis, UsesObjectStore, UsesModels, UsesPrompt, UsesScheduler):
    """Variables `VITASCOPE_GPU_WORKER_…`."""

    service: ClassVar[str] = "gpu-worker"

    pool: str = "default"
    """The pool whose tasks this worker takes; a model card names the pool that it needs."""
    num_threads: int = Field(default=1, ge=1, le=256)
    """CPU threads of torch. Fixed, because a resumed clip is bit-identical only under the same number."""
    num_ranks: int = Field(default=1, ge=1, le=64)
    """Ranks that generate a clip together: what `vitascope up` starts, and what torchrun is expected to start."""
    checkpoint_steps: int = Field(default=10, ge=1)
    """Steps between checkpoints."""
