"""The outside world of delivery: SQL."""
