"""The outside world: the policy file, the models on disk, the object store."""
