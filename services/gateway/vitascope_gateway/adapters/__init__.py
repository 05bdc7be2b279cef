"""The gateway's outside world, translated: SQL, Redis streams, the prompt service and the scheduler."""
