"""Every metric of postproc."""

from prometheus_client import Counter, Histogram

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

ENCODE_SECONDS = Histogram(
    "vitascope_postproc_encode_seconds", "Seconds to encode video and pictures in one pass", buckets=_SECONDS
)
SIGN_SECONDS = Histogram(
    "vitascope_postproc_sign_seconds", "Seconds to sign a video and to verify the signature", buckets=_SECONDS
)
TASKS = Counter(
    "vitascope_postproc_tasks", "Tasks by outcome: done, failed, yielded, cancelled, stale, refused", ["outcome"]
)
