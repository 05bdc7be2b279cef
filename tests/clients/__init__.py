"""Unmodified clients of the wire format, each with its own pins, against the whole stack."""
