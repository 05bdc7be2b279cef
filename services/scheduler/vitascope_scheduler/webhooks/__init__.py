"""Webhooks: which deliveries there are, and the process that makes them."""
