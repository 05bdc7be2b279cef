"""The outside world of the GPU worker, translated."""
