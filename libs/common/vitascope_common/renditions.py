"""The files of a published video: what clients ask for as `variant`, delivery serves and post-processing writes."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rendition:
    """What kind of file it is."""

    media_type: str
    suffix: str


RENDITIONS: Mapping[str, Rendition] = {
    "video": Rendition("video/mp4", "mp4"),
    "thumbnail": Rendition("image/webp", "webp"),  # the middle frame
    "spritesheet": Rendition("image/jpeg", "jpg"),  # frames of the whole, in rows, for scrubbing
}
