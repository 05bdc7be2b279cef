"""What services share and nothing else: ids, states, events, keys, database, object store, registry, telemetry."""
