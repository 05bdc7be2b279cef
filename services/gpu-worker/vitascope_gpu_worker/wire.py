"""Protobuf <-> domain for the prompt service; tasks are translated in `vitascope_common.wire`."""

from vitascope_common.jobs import Artifact
from vitascope_common.wire import artifact_from_proto
from vitascope_proto.v1 import prompt_pb2


def encode_request(model: str, prompt: str, negative_prompt: str) -> prompt_pb2.EncodeRequest:
    """Ask for the conditioning of normalised prompts."""
    return prompt_pb2.EncodeRequest(model=model, prompt=prompt, negative_prompt=negative_prompt)


def conditioning_from(answer: prompt_pb2.EncodeResponse) -> Artifact:
    """Read where the conditioning lies."""
    return artifact_from_proto(answer.conditioning)
