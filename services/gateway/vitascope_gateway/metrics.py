"""What the gateway counts; every label has few values."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("vitascope_gateway_requests", "Requests answered", ["method", "route", "status"])
REQUEST_SECONDS = Histogram(
    "vitascope_gateway_request_seconds", "Time to the first byte of the answer", ["method", "route"]
)
ADMISSIONS = Counter(
    "vitascope_gateway_admissions", "Requests for a video, by outcome (admitted, replayed or error code)", ["outcome"]
)
FOLLOWERS = Gauge("vitascope_gateway_followers", "Open event streams")
FOLLOWERS_DROPPED = Counter(
    "vitascope_gateway_followers_dropped", "Event streams closed because the client read too slowly"
)
FEED_LIVE = Gauge("vitascope_gateway_feed_live", "1 while the event feeds are being read")
BATCHES = Counter("vitascope_gateway_batches", "Batches that this gateway has ended, by their last state", ["state"])
BATCH_LINES = Counter(
    "vitascope_gateway_batch_lines",
    "Lines of batches that this gateway has ended, by outcome (completed or error code)",
    ["outcome"],
)
BATCHES_UNDER_WAY = Gauge("vitascope_gateway_batches_under_way", "Batches that are not over, whichever gateway works")
