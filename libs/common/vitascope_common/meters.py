"""What executors measure of an attempt beside what it used, by name: for the ledger, and some of it for people.

Seconds are wall time and add up over the attempts of a job; of a peak the highest counts.
"""

from collections.abc import Mapping

LOAD_S = "load_s"  # the model, unless it was loaded already
ENCODE_S = "encode_s"  # the prompt and what else the clip is made from; of a resumed one also its checkpoint
DENOISE_S = "denoise_s"
DECODE_S = "decode_s"
UPLOAD_S = "upload_s"
POSTPROCESS_S = "postprocess_s"
PEAK_MEMORY_MB = "peak_memory_mb"
"""MiB of a device (of its process where that is the CPU) at most."""

DURATIONS = (LOAD_S, ENCODE_S, DENOISE_S, DECODE_S, UPLOAD_S, POSTPROCESS_S)
"""In their order."""
SHOWN = frozenset({*DURATIONS, PEAK_MEMORY_MB})
"""What people see of a job."""


def combined(before: Mapping[str, float], of_attempt: Mapping[str, float]) -> dict[str, float]:
    """Return the meters of a job, one more attempt included; names that nobody is shown are left out."""
    result = dict(before)
    for name in SHOWN & of_attempt.keys():
        value = of_attempt[name]
        result[name] = max(result.get(name, 0.0), value) if name == PEAK_MEMORY_MB else result.get(name, 0.0) + value
    return result
