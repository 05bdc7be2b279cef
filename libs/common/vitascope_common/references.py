"""Pictures and clips that a job is made from: what they are to it, where they lie, what they ask of a model."""

from collections.abc import Mapping
from enum import StrEnum

from vitascope_common.registry_cards import Capability


class ReferenceRole(StrEnum):
    """What a picture or clip is to the clip that is made from it."""

    FIRST_FRAME = "first_frame"  # a picture: the first frame, exactly
    LAST_FRAME = "last_frame"  # a picture: what the last frame is to look like
    CONTINUE = "continue"  # a clip: what comes before
    CHANGE = "change"  # a clip: what is drawn over


NEEDED: Mapping[str, Capability] = {
    ReferenceRole.FIRST_FRAME: Capability.IMAGE_TO_VIDEO,
    ReferenceRole.LAST_FRAME: Capability.KEYFRAMES,
    ReferenceRole.CONTINUE: Capability.EXTENSION,
    ReferenceRole.CHANGE: Capability.VIDEO_TO_VIDEO,
}
"""What a model must be able to do to take a reference of a role."""


def reference_key(job_id: str, name: str) -> str:
    """Return the object key of a reference: with what its job works on, but of no attempt."""
    return f"work/{job_id}/references/{name}"
