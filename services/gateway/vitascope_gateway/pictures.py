"""Pictures that a clip is made from: what a client sends -> a PNG of the job's size. No file is believed."""

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from vitascope_common.errors import InvalidRequestError
from vitascope_gateway.forms import object_of

MAX_PICTURE_BYTES = 10 * 1024 * 1024
MAX_PICTURE_PIXELS = 40_000_000
MEDIA_TYPE = "image/png"
"""Of what `fit` returns."""
FORMATS = ("PNG", "JPEG", "WEBP")
NAMES = "PNG, JPEG or WebP"
MAX_SCANS = 100
"""Of a JPEG. Those of photographs have a dozen at most; each goes over all pixels, however little it says of them."""
MAX_SEGMENTS, MAX_CHUNKS = 1_000, 10_000
"""Of a JPEG before its first scan, and of a PNG; each takes time, whatever is in it."""
MAX_EXIF_BYTES = 64 * 1024
"""The largest that a JPEG can hold in one piece. Its entries may all say that they are as large as the whole."""

_DATA_URL = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)
_ELSEWHERE = re.compile(r"https?://", re.IGNORECASE | re.ASCII)
_PAGE = (255, 255, 255, 255)
"""What lies behind a transparent picture: what most of them were drawn for."""

TILE_PX = 1024
"""Side of what is converted at once."""
_TURNS: Mapping[int, tuple[Image.Transpose, bool]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False),
    3: (Image.Transpose.ROTATE_180, False),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False),
    5: (Image.Transpose.TRANSPOSE, True),
    6: (Image.Transpose.ROTATE_270, True),
    7: (Image.Transpose.TRANSVERSE, True),
    8: (Image.Transpose.ROTATE_90, True),
}
"""What sets a picture upright, by its EXIF orientation, and whether that swaps its sides."""

Image.MAX_IMAGE_PIXELS = None  # pixels are counted here, and more strictly


def read(name: str, value: Any) -> bytes | str:
    """Return the bytes of a picture, or the URL where it lies: a file of a form, a URL, or `{"image_url": URL}`.

    Decodes no pixels and fetches nothing.

    Raises:
        InvalidRequestError: it is none of these, or has more than 10 MiB; `name` is the field.
    """
    value = object_of(value)
    if isinstance(value, Mapping):
        if set(value) != {"image_url"}:
            raise _invalid(name, "must be a file, an https URL, a data URL, or an object with nothing but image_url")
        value = value["image_url"]
    if isinstance(value, str):
        if _ELSEWHERE.match(value):
            return value
        value = _from_data_url(name, value)
    if not isinstance(value, bytes):
        raise _invalid(name, "must be a file, an https URL, a data URL, or an object with image_url")
    if len(value) > MAX_PICTURE_BYTES:
        raise _too_large(name)
    return value


def _from_data_url(name: str, text: str) -> bytes:
    begin = _DATA_URL.match(text)
    if begin is None:
        raise _invalid(name, "must be a file, an https URL, or a data URL such as data:image/png;base64,iVBORw0…")
    if (len(text) - begin.end()) * 3 // 4 > MAX_PICTURE_BYTES + 3:
        raise _too_large(name)
    try:
        return base64.b64decode(text[begin.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(name, "is a data URL whose base64 cannot be read") from None


def fit(name: str, data: bytes, width_px: int, height_px: int) -> bytes:
    """Return a picture as a PNG of exactly this size: upright, covering it, its middle. Takes up to seconds.

    The PNG holds pixels and nothing else: no position, no camera, no profile.

    Raises:
        InvalidRequestError: no picture, of another format, damaged, of more than 40 million pixels, or of more parts
            than pictures have.
    """
    _check_parts(name, data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PICTURE_PIXELS:  # of the header: nothing is decoded yet
                raise _invalid(
                    name, f"has {opened.width} x {opened.height} pixels; at most {MAX_PICTURE_PIXELS} are allowed"
                )
            turn, is_on_its_side = _TURNS.get(_orientation(name, opened), (None, False))
            size_px = (height_px, width_px) if is_on_its_side else (width_px, height_px)
            enough_px = 2 * max(size_px)
            opened.draft("RGB", (enough_px, enough_px))  # a JPEG is decoded no larger than needed
            picture = _middle(opened, *size_px)
            if turn is not None:
                picture = picture.transpose(turn)
    except InvalidRequestError:
        raise
    except UnidentifiedImageError:
        raise _invalid(name, f"must be a picture: {NAMES}") from None
    except Exception:  # a file that was made to break decoders makes them raise anything
        raise _invalid(name, "is damaged: it begins like a picture, but cannot be decoded") from None
    encoded = io.BytesIO()
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(encoded, "PNG")
    return encoded.getvalue()


def _check_parts(name: str, data: bytes) -> None:
    """Refuse a file whose many parts would keep the decoder busy for minutes."""
    if data.startswith(b"\xff\xd8"):
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise _invalid(name, f"is a JPEG of too many scans; at most {MAX_SCANS} are allowed")
        if _has_more_segments(data, MAX_SEGMENTS):
            raise _invalid(name, f"is a JPEG of too many segments; at most {MAX_SEGMENTS} are allowed")
    if data.startswith(b"\x89PNG") and _has_more_chunks(data, MAX_CHUNKS):
        raise _invalid(name, f"is a PNG of too many chunks; at most {MAX_CHUNKS} are allowed")


def _has_more_segments(data: bytes, most: int) -> bool:
    """Whether this many segments of a JPEG, or bytes between them that begin like one, come before its first scan."""
    at = 2
    for _ in range(most):
        at = data.find(b"\xff", at)
        marker = data[at + 1] if 0 <= at < len(data) - 1 else None
        if marker is None or marker == 0xDA:
            return False
        if marker == 0xFF:  # padding
            at += 1
        elif marker in (0x00, 0x01, 0xC8) or 0xD0 <= marker <= 0xD9 or 0xF0 <= marker <= 0xFD:  # that is all of it
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return True


def _has_more_chunks(data: bytes, most: int) -> bool:
    """Whether a PNG has more chunks than this."""
    at = 8
    for _ in range(most):
        at += 12 + int.from_bytes(data[at : at + 4])
        if at >= len(data):
            return False
    return True


def _orientation(name: str, picture: Image.Image) -> int:
    """Return the EXIF orientation of a picture. One that is no JPEG may be decoded for it."""
    if picture.format == "PNG":
        picture.load()  # it may come last
    for kept in ("exif", "Raw profile type exif"):
        if len(picture.info.get(kept, "")) > MAX_EXIF_BYTES * (1 if kept == "exif" else 2):  # that one is in hex
            raise _invalid(name, f"has too much EXIF data; at most {MAX_EXIF_BYTES} bytes are allowed")
    return int(picture.getexif().get(ExifTags.Base.Orientation, 1))


def _middle(picture: Image.Image, width_px: int, height_px: int) -> Image.Image:
    """Return the largest middle of a picture with this aspect ratio at this size, as RGB.

    It is converted and halved, thirded, … one tile after the other, so that nothing else gets as large as the picture.
    """
    scale = min(picture.width / width_px, picture.height / height_px)
    cut_width, cut_height = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    left, top = (picture.width - cut_width) // 2, (picture.height - cut_height) // 2
    factor = max(1, int(scale / 2))  # at least twice the size is left to the better filter
    reduced = Image.new("RGB", (-(-cut_width // factor), -(-cut_height // factor)))
    side = factor * max(1, TILE_PX // factor)
    for y in range(0, cut_height, side):
        for x in range(0, cut_width, side):
            right, bottom = min(x + side, cut_width), min(y + side, cut_height)
            tile = _as_rgb(picture.crop((left + x, top + y, left + right, top + bottom)))
            reduced.paste(tile.reduce(factor), (x // factor, y // factor))
    box = (0, 0, cut_width / factor, cut_height / factor)
    return reduced.resize((width_px, height_px), Image.Resampling.LANCZOS, box=box)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":  # 16 bits of grey
        return picture.convert("I").point(lambda level: level / 256).convert("L").convert("RGB")
    if picture.has_transparency_data:
        drawn = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, _PAGE), drawn).convert("RGB")
    return picture.convert("RGB")


def _too_large(name: str) -> InvalidRequestError:
    return _invalid(name, f"is too large; at most {MAX_PICTURE_BYTES} bytes are allowed")


def _invalid(name: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} {what}.", param=name)
