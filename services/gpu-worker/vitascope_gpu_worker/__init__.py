"""The GPU worker: claims a task, generates its clip, survives being killed at any step."""
