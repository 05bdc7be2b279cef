"""How generating can fail: leaves of the tree in `vitascope_common/errors.py` that only this service raises."""

from vitascope_common.errors import InternalError, UnavailableError


class IllegalTransitionError(InternalError):
    """The worker's machine was asked for a transition that its table does not have."""

    code = "illegal_transition"
    default_message = "The worker was asked for a step that its state does not allow."


class InvalidLatentsError(InternalError):
    """The model produced NaN or infinity; another attempt would produce the same."""

    code = "invalid_latents"
    default_message = "The model produced invalid values for this request."


class GroupError(UnavailableError):
    """What no process survives in a state to be trusted: its ranks have to start anew. Another attempt may succeed."""

    code = "group_failed"
    default_message = "The worker failed and starts anew."


class OutOfMemoryError(GroupError):
    """The device had no memory left; another worker may have more."""

    code = "out_of_memory"
    default_message = "The device ran out of memory."


class DeviceError(GroupError):
    """The device failed; nothing that this process asks of it succeeds any more."""

    code = "device_failed"
    default_message = "The device failed."


class RankLostError(GroupError):
    """A rank is gone, or the ranks no longer agree on where they are."""

    code = "rank_lost"
    default_message = "A rank of the worker is gone."


class DiskFullError(UnavailableError):
    """The local disk has no space for the mezzanine; another worker's may, and this one's later."""

    code = "disk_full"
    default_message = "The disk of the worker is full."


class EncoderError(UnavailableError):
    """ffmpeg did not write the mezzanine (killed, hung); another attempt may."""

    code = "encoder_failed"
    default_message = "The frames could not be written."


class InvalidFramesError(InternalError):
    """The decoder gave other frames than the task asks for."""

    code = "invalid_frames"
    default_message = "The decoder produced frames of the wrong size or number."
