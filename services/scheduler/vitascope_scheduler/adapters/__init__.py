"""The outside world of the scheduler, translated: Redis and the Celery broker."""
