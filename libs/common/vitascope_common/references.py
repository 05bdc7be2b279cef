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


def num_continued_frames(num_clip_frames: int, num_latent_frames: int) -> int:
    """Say how many frames a continued clip shares with the earlier one of `num_clip_frames`: 4k + 1.

    As many as there are, but never more than half of the new clip's latent frames, so that it has something to tell.

    Raises:
        ValueError: there is no earlier frame, or the new clip is a single latent frame.
    """
    if num_clip_frames < 1 or num_latent_frames < 2:
        raise ValueError(
            f"cannot continue {num_clip_frames} frames by {num_latent_frames} latent frames: need at least 1 and 2"
        )
    return 4 * (min((num_clip_frames - 1) // 4 + 1, num_latent_frames // 2) - 1) + 1


def num_repeated_frames(num_frames_before: int, num_frames: int) -> int:
    """Say how many frames a clip begins with that are the last ones of the `num_frames_before` that it continues."""
    return num_continued_frames(num_frames_before, (num_frames - 1) // 4 + 1) if num_frames_before else 0
