"""Scheduler: fair queueing, dispatch, leases, outbox relay, reconciler, and the only writer of jobs after admission."""
