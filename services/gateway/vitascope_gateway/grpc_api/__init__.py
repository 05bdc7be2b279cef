"""The public gRPC API: VideoService over the same use cases as the REST API."""
