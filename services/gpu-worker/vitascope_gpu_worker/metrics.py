"""The metrics of the GPU worker."""

from prometheus_client import Counter, Gauge, Histogram

WORKER_STATE = Gauge("vitascope_worker_state", "1 for the state that the worker is in", ["state"])
STEP_SECONDS = Histogram(
    "vitascope_worker_step_seconds",
    "Duration of one denoising step",
    ["model"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
STEPS = Counter("vitascope_worker_steps_total", "Denoising steps taken", ["model"])
CHECKPOINT_BLOCKING_SECONDS = Histogram(
    "vitascope_worker_checkpoint_blocking_seconds",
    "Time that a checkpoint kept the denoising loop waiting",
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1),
)
CHECKPOINT_SECONDS = Histogram(
    "vitascope_worker_checkpoint_seconds", "Time until a checkpoint was written and uploaded, in the background"
)
DECODE_SECONDS = Histogram("vitascope_worker_decode_seconds", "Time to decode a clip into its mezzanine", ["model"])
PREVIEW_SECONDS = Histogram(
    "vitascope_worker_preview_seconds",
    "Time that a preview kept the denoising loop waiting, and CPU time that it took in the background",
    ["where"],
    buckets=(0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1),
)
RESUMES = Counter("vitascope_worker_resumes_total", "Attempts that continued from a checkpoint")
LOST_CHECKPOINTS = Counter(
    "vitascope_worker_unusable_checkpoints_total", "Recorded checkpoints that a resume could not use", ["reason"]
)
