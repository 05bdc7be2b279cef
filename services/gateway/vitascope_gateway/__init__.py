"""The gateway: the public REST API, where a request becomes a job."""
