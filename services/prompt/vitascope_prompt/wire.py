"""Protobuf <-> domain for the two calls."""

from vitascope_common.wire import artifact_to_proto
from vitascope_prompt.service import Checked, Encoded
from vitascope_proto.v1 import prompt_pb2


def checked_to_proto(checked: Checked) -> prompt_pb2.CheckResponse:
    """Translate a judged prompt."""
    return prompt_pb2.CheckResponse(
        allowed=checked.verdict.is_allowed,
        prompt=checked.prompt,
        negative_prompt=checked.negative_prompt,
        category=checked.verdict.category,
        score=checked.verdict.score,
        policy_version=checked.verdict.policy_version,
        message=checked.message,
        param=checked.param,
    )


def encoded_to_proto(encoded: Encoded) -> prompt_pb2.EncodeResponse:
    """Translate a conditioning object."""
    return prompt_pb2.EncodeResponse(conditioning=artifact_to_proto(encoded.artifact), cached=encoded.is_cached)
