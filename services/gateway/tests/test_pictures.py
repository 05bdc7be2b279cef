"""Pictures that a video is made from: which are taken, what becomes of them, and what a refusal says."""

import base64
import io
import json
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

from vitascope_common.errors import InvalidRequestError, UnavailableError
from vitascope_common.registry import ModelCard
from vitascope_gateway import pictures
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_gateway.admission import UnknownOutcomeError
from vitascope_gateway.pictures import MAX_PICTURE_BYTES, fit
from vitascope_gateway.request import Offer, parse_request

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def halves(left: tuple[int, ...], right: tuple[int, ...], width: int = 40, height: int = 20) -> Image.Image:
    picture = Image.new("RGB", (width, height), left)
    picture.paste(right, (width // 2, 0, width, height))
    return picture


def near(found: Any, expected: tuple[int, ...]) -> bool:
    return all(abs(one - other) < 20 for one, other in zip(found, expected, strict=True))


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("PNG", "RGB")
    return picture


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_covers_the_size_and_its_middle_is_taken(form: str) -> None:
    picture = Image.new("RGB", (300, 100), RED)
    picture.paste(BLUE, (100, 0, 200, 100))
    found = opened(fit("input_reference", encoded(picture, form), 16, 16))
    assert found.size == (16, 16)
    assert all(near(found.getpixel(at), BLUE) for at in ((1, 1), (14, 1), (8, 8), (1, 14), (14, 14)))


def test_a_photograph_stands_upright_and_says_nothing_about_where_it_was_taken() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    exif[0x010E] = "at home"
    data = fit("input_reference", encoded(halves(RED, BLUE), "JPEG", exif=exif, quality=95), 16, 32)
    found = opened(data)
    assert near(found.getpixel((8, 4)), RED)
    assert near(found.getpixel((8, 28)), BLUE)
    assert b"at home" not in data
    assert not found.getexif()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_whatever_a_picture_is_coded_in_its_colours_stay(mode: str) -> None:
    grey = Image.new("L", (32, 32), 150)
    picture = Image.new("I;16", (32, 32), 150 * 256) if mode == "I;16" else grey.convert("RGB").convert(mode)
    found = opened(fit("input_reference", encoded(picture, "JPEG" if mode == "CMYK" else "PNG"), 16, 16))
    assert near(found.getpixel((8, 8)), (150, 150, 150))


def test_what_is_transparent_becomes_white() -> None:
    found = opened(fit("input_reference", encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 0))), 16, 16))
    assert found.getpixel((8, 8)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(100), "PNG, JPEG or WebP"),
        (encoded(Image.new("RGB", (8, 8)), "BMP"), "PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "PNG, JPEG or WebP"),
        (encoded(halves(RED, BLUE))[:70], "damaged"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:700], "damaged"),
        (encoded(Image.effect_noise((64, 64), 90), "WEBP")[:200], "damaged"),
    ],
)
def test_what_is_no_picture_names_the_field_and_what_is_taken(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as refused:
        fit("last_frame", data, 16, 16)
    assert refused.value.param == "last_frame"
    assert refused.value.message.startswith("last_frame ")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_pixels_are_counted_before_they_are_decoded(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (3000, 1000)), form)
    monkeypatch.setattr(pictures, "MAX_PICTURE_PIXELS", 3000 * 1000 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InvalidRequestError, match="3000 x 1000 pixels"):
        fit("input_reference", data, 16, 16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def after(part: bytes, more: bytes, data: bytes) -> bytes:
    at = data.index(part) + len(part)
    return data[:at] + more + data[at:]


PROGRESSIVE = encoded(Image.effect_noise((64, 64), 90), "JPEG", progressive=True)
SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
PNG = encoded(halves(RED, BLUE))
MUCH_EXIF = b"MM\0*\0\0\0\x08\xea\x60" + bytes(70_000)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (PROGRESSIVE[:-2] + SCAN * 200 + b"\xff\xd9", "at most 100 are"),
        (after(b"\xff\xd8", b"\xff\xe1\0\x10Exif\0\0" + bytes(8), PROGRESSIVE), None),
        (after(b"\xff\xd8", (b"\xff\xe1\0\x10Exif\0\0" + bytes(8)) * 1000, PROGRESSIVE), "at most 1000 are"),
        (after(b"\xff\xd8", b"\xff" * 1000, PROGRESSIVE), "at most 1000 are"),
        (after(PNG[:33], chunk(b"prIv", b"") * 10_000, PNG), "at most 10000 are"),
        (after(PNG[:33], chunk(b"prIv", b"") * 1000, PNG), None),
        (after(PNG[:33], chunk(b"eXIf", MUCH_EXIF), PNG), "at most 65536 bytes"),
        (after(PNG[:-12], chunk(b"eXIf", MUCH_EXIF), PNG), "at most 65536 bytes"),
        (encoded(halves(RED, BLUE), "WEBP", exif=b"Exif\0\0" + MUCH_EXIF), "at most 65536 bytes"),
        (
            after(PNG[:33], chunk(b"tEXt", b"Raw profile type exif\0\nexif\n70000\n" + b"00" * 70_000), PNG),
            "at most 65536 bytes",
        ),
    ],
)
def test_a_file_of_more_parts_than_pictures_have_is_not_decoded(data: bytes, said: str | None) -> None:
    if said is None:
        assert opened(fit("last_frame", data, 16, 16))
        return
    with pytest.raises(InvalidRequestError, match=said) as refused:
        fit("last_frame", data, 16, 16)
    assert refused.value.param == "last_frame"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"file_id": "file_1"}, "image_url"),
        ({"image_url": "data:image/png;base64,AAAA", "file_id": "file_1"}, "image_url"),
        ({"image_url": 7}, "image_url"),
        ({}, "image_url"),
        ("", "data URL"),
        ("file:///etc/passwd", "data URL"),
        ("data:image/png,AAAA", "data URL"),
        ("data:image/png;base64,AA*A", "base64"),
        ("data:image/png;base64,AAé=", "base64"),
        ("data:image/png;base64," + "A" * (MAX_PICTURE_BYTES * 4 // 3 + 8), "at most 10485760 bytes"),
        (bytes(MAX_PICTURE_BYTES + 1), "at most 10485760 bytes"),
        (7, "data URL"),
        (["data:image/png;base64,AAAA"], "data URL"),
    ],
)
@pytest.mark.parametrize("field", ["input_reference", "last_frame"])
def test_what_holds_no_picture_is_refused_with_what_to_do(card: ModelCard, field: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said) as refused:
        parse_request({"prompt": "x", field: value}, Offer([card]))
    assert refused.value.param == field
    assert len(refused.value.message) < 200


def test_a_model_that_cannot_do_it_says_what_it_lacks(text_card: ModelCard, card: ModelCard) -> None:
    picture = data_url(encoded(halves(RED, BLUE)))
    for field, lack in (("input_reference", "image_to_video"), ("last_frame", "keyframes")):
        with pytest.raises(InvalidRequestError, match=lack) as refused:
            parse_request({"prompt": "x", field: picture}, Offer([text_card]))
        assert refused.value.param == field
    with pytest.raises(InvalidRequestError, match="negative_prompt") as refused:
        parse_request({"prompt": "x", "negative_prompt": "y"}, Offer([text_card]))
    assert refused.value.param == "negative_prompt"
    with pytest.raises(InvalidRequestError, match="needs input_reference") as refused:
        parse_request({"prompt": "x", "last_frame": picture}, Offer([card]))
    assert refused.value.param == "last_frame"


PICTURE = encoded(halves(RED, BLUE, 640, 480), "JPEG")
FILE = ("input_reference", ("a.jpg", PICTURE, "image/jpeg"))
LAST = ("last_frame", ("b.png", encoded(halves(GREEN, RED)), "image/png"))


@pytest.mark.parametrize(
    "body",
    [
        {"data": {"prompt": "x"}, "files": [FILE]},
        {"data": {"prompt": "x"}, "files": [("input_reference", ("upload", PICTURE, "application/octet-stream"))]},
        {"files": {"prompt": (None, "x"), "input_reference[image_url]": (None, data_url(PICTURE))}},
        {"files": {"prompt": (None, "x"), "input_reference": (None, data_url(PICTURE))}},
        {"json": {"prompt": "x", "input_reference": data_url(PICTURE, "image/jpeg")}},
        {"json": {"prompt": "x", "input_reference": {"image_url": data_url(PICTURE)}}},
    ],
)
def test_a_picture_in_any_form_becomes_a_reference_of_the_job(inside: Any, body: dict[str, Any]) -> None:
    answer = inside.request("POST", "/v1/videos", **body)
    assert answer.status_code == 202, answer.text
    [reference] = references_of(inside, answer.json()["id"])
    artifact = reference["artifact"]
    assert (reference["role"], artifact["media_type"]) == ("first_frame", "image/png")
    assert artifact["key"] == f"work/{answer.json()['id']}/references/first_frame.png"
    info = inside.objects.stat(artifact["key"])
    assert (info.sha256, info.num_bytes) == (artifact["sha256"], artifact["num_bytes"])
    found = opened(inside.objects.get_bytes(artifact["key"]))
    assert found.size == (64, 64)
    assert near(found.getpixel((5, 32)), RED)
    assert near(found.getpixel((58, 32)), BLUE)


def test_a_large_file_is_a_picture_like_a_small_one(inside: Any) -> None:
    photograph = encoded(Image.effect_noise((1500, 1500), 60))
    assert 1_000_000 < len(photograph) < MAX_PICTURE_BYTES
    answer = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=[("input_reference", ("a", photograph))])
    assert answer.status_code == 202, answer.text
    assert len(references_of(inside, answer.json()["id"])) == 1
    too_large = bytes(MAX_PICTURE_BYTES + 1)
    answer = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=[("last_frame", ("a", too_large))])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "last_frame")


def test_first_and_last_frame_have_the_size_of_the_video(inside: Any) -> None:
    answer = inside.request("POST", "/v1/videos", data={"prompt": "x", "size": "96x64"}, files=[FILE, LAST])
    first, last = references_of(inside, answer.json()["id"])
    assert (first["role"], last["role"]) == ("first_frame", "last_frame")
    assert [opened(inside.objects.get_bytes(one["artifact"]["key"])).size for one in (first, last)] == [(96, 64)] * 2


@pytest.mark.parametrize("field", ["prompt", "metadata", "input_reference[image_url]"])
def test_files_are_taken_for_pictures_only(inside: Any, field: str) -> None:
    answer = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=[(field, ("a.jpg", PICTURE))])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_nothing_is_stored_of_what_is_refused(inside: Any) -> None:
    for fields, files in (
        ({"prompt": "forbidden"}, [FILE, LAST]),
        ({"prompt": "x"}, [FILE, ("last_frame", ("b.png", b"none", "image/png"))]),
        ({"prompt": "x", "seconds": "7"}, [FILE]),
    ):
        answer = inside.request("POST", "/v1/videos", data=fields, files=files)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in ("prompt", "last_frame", "seconds")
    assert list(inside.objects.list()) == []
    assert inside.sql("SELECT * FROM jobs") == []


def test_without_the_object_store_nothing_is_promised_to_a_picture_and_text_goes_on(inside: Any, tmp_path: Any) -> None:
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    (tmp_path / "objects").write_text("no folder")
    answer = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=[FILE])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert inside.sql("SELECT * FROM jobs") == []
    assert inside.request("POST", "/v1/videos", json={"prompt": "x"}).status_code == 202


def test_a_retry_keeps_its_pictures_as_its_own(inside: Any) -> None:
    old = inside.request("POST", "/v1/videos", data={"prompt": "x", "seed": "3"}, files=[FILE, LAST]).json()
    inside.sql("UPDATE jobs SET state = 'failed'")
    answer = inside.request("POST", f"/v1/videos/{old['id']}/retry")
    assert answer.status_code == 202, answer.text
    before, after = (references_of(inside, one["id"]) for one in (old, answer.json()))
    assert [one["artifact"]["sha256"] for one in after] == [one["artifact"]["sha256"] for one in before]
    inside.objects.delete_prefix(f"work/{old['id']}/")
    assert all(inside.objects.exists(one["artifact"]["key"]) for one in after)
    answer = inside.request("POST", f"/v1/videos/{old['id']}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "reference_expired")


def test_a_retry_copies_what_is_stored_whatever_it_is(inside: Any) -> None:
    old = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=[FILE]).json()
    large = bytes(MAX_PICTURE_BYTES + 1)  # no picture at all, as large as no field may be
    key = f"work/{old['id']}/references/continue.mkv"
    info = inside.objects.put_bytes(key, large, "video/x-matroska")
    [reference] = references_of(inside, old["id"])
    clip = {
        "role": "first_frame",
        "artifact": reference["artifact"]
        | {"key": key, "sha256": info.sha256, "num_bytes": len(large), "media_type": "video/x-matroska"},
        "strength": 0.0,
    }
    (job,) = inside.sql("SELECT params FROM jobs")
    params = json.dumps(json.loads(job["params"]) | {"references": [clip]})
    inside.sql("UPDATE jobs SET state = 'failed', params = ?", params)
    answer = inside.request("POST", f"/v1/videos/{old['id']}/retry")
    assert answer.status_code == 202, answer.text
    [copied] = references_of(inside, answer.json()["id"])
    assert copied["artifact"]["key"] == f"work/{answer.json()['id']}/references/continue.mkv"
    assert inside.objects.get_bytes(copied["artifact"]["key"]) == large
    clip["role"] = "of_another_build"
    inside.sql(
        "UPDATE jobs SET params = ? WHERE job_id = ?",
        json.dumps(json.loads(params) | {"references": [clip]}),
        old["id"],
    )
    answer = inside.request("POST", f"/v1/videos/{old['id']}/retry")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("error", "is_kept"), [(UnavailableError(), False), (UnknownOutcomeError(), True), (RuntimeError(), False)]
)
def test_pictures_of_a_job_that_is_not_admitted_are_deleted_unless_it_may_be(
    inside: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, is_kept: bool
) -> None:
    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(SqlStore, "admit", fail)
    answer = inside.request("POST", "/v1/videos", data={"prompt": "x"}, files=[FILE, LAST])
    assert answer.status_code == (500 if type(error) is RuntimeError else 503)
    assert bool(list(inside.objects.list())) is is_kept


def test_a_large_picture_with_everything_in_it_is_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGBA", (3000, 2000), (*RED, 255))
    picture.paste((*BLUE, 0), (0, 0, 1500, 2000))
    data = encoded(picture, exif=exif)
    convert, largest = Image.Image.convert, 0

    def watched(self: Image.Image, *args: Any, **options: Any) -> Image.Image:
        nonlocal largest
        largest = max(largest, self.width * self.height)
        return convert(self, *args, **options)

    monkeypatch.setattr(Image.Image, "convert", watched)
    found = opened(fit("input_reference", data, 20, 30))
    assert found.getpixel((10, 2)) == (255, 255, 255)
    assert near(found.getpixel((10, 28)), RED)
    assert 0 < largest < 3000 * 2000 / 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_set_upright_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = Image.effect_noise((90, 60), 80).resize((900, 600), Image.Resampling.BICUBIC).convert("RGB")
    data = encoded(noise, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = ImageOps.fit(upright, (64, 48), Image.Resampling.LANCZOS)
    difference = ImageChops.difference(opened(fit("last_frame", data, 64, 48)), expected)
    assert max(ImageStat.Stat(difference).mean) < 4  # a wrong turn: 40


def references_of(inside: Any, video_id: str) -> list[dict[str, Any]]:
    """Return the references of the task that generates; those of the job are the same."""
    (job,) = inside.sql("SELECT params FROM jobs WHERE job_id = ?", video_id)
    (task,) = inside.sql("SELECT params FROM tasks WHERE job_id = ? AND stage = 'generate'", video_id)
    assert json.loads(job["params"]) == json.loads(task["params"])
    return list(json.loads(task["params"])["references"])
