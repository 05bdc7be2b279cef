"""The outside world of postproc: ffmpeg, PyAV, C2PA, Redis."""
