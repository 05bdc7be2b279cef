"""Metrics of the scheduler. Labels are pools and fixed words, never tenants, jobs or workers."""

from prometheus_client import Counter, Gauge, Histogram

QUEUE_DEPTH = Gauge("vitascope_scheduler_queue_depth", "Tasks that wait in a pool", ["pool"])
IN_FLIGHT = Gauge("vitascope_scheduler_in_flight", "Tasks handed out or claimed in a pool", ["pool"])
IDLE_WORKERS = Gauge("vitascope_scheduler_idle_workers", "Registered workers with a free slot", ["pool"])
DISPATCHES = Counter("vitascope_scheduler_dispatches_total", "Tasks handed to a worker or sent to Celery", ["pool"])
CLAIMS = Counter(
    "vitascope_scheduler_claims_total", "Answers to claims: granted, or the reason of a refusal", ["answer"]
)
REPORTS = Counter("vitascope_scheduler_reports_total", "Attempts that ended", ["outcome", "accepted"])
BACKLOG_S = Gauge(
    "vitascope_scheduler_backlog_gpu_seconds", "Estimated cost of what waits in a pool: GPU-seconds", ["pool"]
)
PREEMPTIONS = Counter(
    "vitascope_scheduler_preemptions_total", "Running tasks that were asked to make way for an urgent one", ["pool"]
)
LEASES_LOST = Counter(
    "vitascope_scheduler_leases_lost_total", "Attempts that ended because their lease ran out", ["pool"]
)
HANDOVERS_EXPIRED = Counter("vitascope_scheduler_handovers_expired_total", "Hand-overs that nobody claimed", ["pool"])
ENQUEUED_AGAIN = Counter("vitascope_scheduler_enqueued_again_total", "Ready tasks the reconciler handed out", ["pool"])
OUTBOX_LAG_S = Gauge("vitascope_scheduler_outbox_lag_seconds", "Age of the oldest row that is not told yet", ["topic"])
RELAYED = Counter("vitascope_scheduler_relayed_total", "Outbox rows that were told", ["topic"])
HEARTBEAT_GAP_S = Histogram(
    "vitascope_scheduler_heartbeat_gap_seconds",
    "Time between two heartbeats of a worker, as this replica saw them",
    buckets=(0.1, 0.5, 1, 2, 2.5, 3, 5, 10, 20, 60),
)
ETA_ERROR_S = Histogram(
    "vitascope_scheduler_eta_error_seconds",
    "How far the end of a task was from the first ETA that this replica told of it",
    ["direction"],  # late: it took longer than told; early
    buckets=(0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
)
EXPIRED = Counter("vitascope_scheduler_jobs_expired_total", "Jobs that were not finished by their deadline")
PURGED = Counter("vitascope_scheduler_jobs_purged_total", "Finished jobs that retention has removed")
FAILURES = Counter("vitascope_scheduler_duty_failures_total", "Rounds of a duty that could not be finished", ["duty"])
