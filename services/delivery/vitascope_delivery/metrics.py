"""Every metric of delivery."""

from prometheus_client import Counter

REQUESTS = Counter("vitascope_delivery_requests", "Answered requests", ["method", "status"])
BYTES = Counter("vitascope_delivery_bytes", "Bytes of media sent", ["variant"])
BROKEN = Counter("vitascope_delivery_broken_streams", "Answers that ended early because the object store failed")
