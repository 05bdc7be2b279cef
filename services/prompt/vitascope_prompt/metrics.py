"""What the prompt service counts."""

from prometheus_client import Counter, Gauge, Histogram

CHECKS = Counter(
    "vitascope_prompt_checks",
    "Checked prompts: verdict allowed, refused, or the kind of the error; category of the policy or empty",
    ["verdict", "category"],
)
ENCODES = Counter("vitascope_prompt_encodes", "Encode calls, answered from the store (hit) or not (miss)", ["result"])
ENCODE_SECONDS = Histogram(
    "vitascope_prompt_encode_seconds",
    "Time to encode one pair of prompts, loading the encoder included",
    ["model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
DAMAGED = Counter("vitascope_prompt_conditioning_damaged", "Stored conditioning objects found damaged and removed")
POLICY_READABLE = Gauge("vitascope_prompt_policy_readable", "1 while the safety policy can be used")
