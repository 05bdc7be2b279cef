"""What the sender counts; labels are fixed words, never tenants, hosts or URLs."""

from prometheus_client import Counter, Gauge, Histogram

ATTEMPTS = Counter(
    "vitascope_webhooks_attempts_total", "Attempts by what follows: delivered, retried, failed", ["outcome"]
)
ATTEMPT_S = Histogram(
    "vitascope_webhooks_attempt_seconds",
    "Time until a receiver answered",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15),
)
LAG_S = Histogram(
    "vitascope_webhooks_lag_seconds",
    "Time from an event to its delivery",
    buckets=(0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300, 1800, 3600, 21600, 86400),
)
PENDING = Gauge("vitascope_webhooks_pending", "Deliveries that are not finished")
OLDEST_S = Gauge("vitascope_webhooks_oldest_seconds", "Age of the oldest event that is not delivered yet; 0: none")
OVERDUE_S = Gauge("vitascope_webhooks_overdue_seconds", "How late the next attempt is; 0: it is not")
