import copy
import hashlib

import pytest
import yaml

from vitascope_common.errors import ConfigurationError, CorruptObjectError, NotFoundError
from vitascope_common.registry import Registry

WEIGHTS = {"vae": b"v" * 100, "dit": b"d" * 3000, "vocabulary": b"red\nblue\n"}
CARD = {
    "id": "tiny-1",
    "kind": "generate",
    "engine": "native",
    "title": "Tiny",
    "description": "For tests.",
    "licence": "Apache-2.0",
    "created": 1_790_000_000,
    "architecture": {"vae": {"width": 4}, "text_encoder": {}, "dit": {"width": 8}},
    "files": {
        name: {"path": f"weights/{name}.bin", "sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
        for name, data in WEIGHTS.items()
    },
    "vocabulary": "weights/vocabulary.bin",
    "sizes": ["64x64", "128x64"],
    "seconds": ["2", "4"],
    "num_frames": {"2": 17, "4": 33},
    "defaults": {
        "size": "64x64",
        "seconds": "2",
        "fps": 8,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
        "shift": 2.0,
        "solver": "euler",
    },
    "limits": {"num_inference_steps": [1, 100], "guidance_scale": [0, 10], "prompt_max_chars": 500},
    "pool": "default",
    "group_size": 1,
    "cost": {"fixed_s": 0.5, "per_step_frame_s": 0.001},
    "price": {"usd_micros_per_second": 1000},
    "provenance": {"trained": "2026-01-01"},
}


def write(models_dir, card, weights=WEIGHTS):
    folder = models_dir / card["id"]
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    for name, data in weights.items():
        (folder / f"weights/{name}.bin").write_bytes(data)
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return folder


def changed(path, value):
    card = copy.deepcopy(CARD)
    *parents, last = path.split("/")
    inner = card
    for parent in parents:
        inner = inner[parent]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return card


def test_a_card_says_what_its_file_says(tmp_path):
    write(tmp_path, CARD)
    (card,) = Registry(tmp_path).cards()
    assert (card.id, card.created, card.num_frames["4"]) == ("tiny-1", 1_790_000_000, 33)
    assert card.limits.num_inference_steps == (1, 100)
    assert card.estimate_s(20, 17) == pytest.approx(0.5 + 0.001 * 20 * 17)


@pytest.mark.parametrize("created", ["2026-11-20", "2026-11-20T00:00:00Z", 1_795_132_800])
def test_a_date_of_creation_may_be_written_in_words(tmp_path, created):
    folder = write(tmp_path, changed("created", created))
    assert Registry(tmp_path).card("tiny-1").created == 1_795_132_800
    text = (folder / "card.yaml").read_text().replace(f"'{created}'", str(created))
    (folder / "card.yaml").write_text(text)
    assert Registry(tmp_path).card("tiny-1").created == 1_795_132_800


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("defaults/size", "32x32", "defaults.size 32x32 is not one of sizes"),
        ("defaults/seconds", "8", "defaults.seconds 8 is not one of seconds"),
        ("defaults/num_inference_steps", 101, "outside limits.num_inference_steps"),
        ("defaults/guidance_scale", 11, "outside limits.guidance_scale"),
        ("limits/guidance_scale", [5, 1], "the lowest exceeds the highest"),
        ("num_frames", {"2": 17}, "num_frames must name exactly"),
        ("sizes", ["64x64", "64x64"], "sizes repeats a value"),
        ("sizes", ["64 x 64"], "sizes.0"),
        ("seconds", [2, 4], "seconds.0"),
        ("vocabulary", "words.txt", "vocabulary words.txt is not one of files"),
        ("files/dit/path", "weights/vae.bin", "two files have the same path"),
        ("files/dit/path", "../secret", "must be a path inside"),
        ("files/dit/path", "/etc/passwd", "must be a path inside"),
        ("files/dit/sha256", "abc", "files.dit.sha256"),
        ("files", {}, "files"),
        ("group_size", 0, "group_size"),
        ("cost/per_step_frame_s", 0, "cost.per_step_frame_s"),
        ("pool", None, "pool: Field required"),
        ("colour", "blue", "colour: Extra inputs"),
        ("architecture/audio", {}, "architecture.audio: Extra inputs"),
        ("id", "../x", "id"),
        ("created", "yesterday", "created"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused_by_name(tmp_path, path, value, complaint):
    folder = write(tmp_path, CARD)
    (folder / "card.yaml").write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(ConfigurationError, match=r"card\.yaml") as caught:
        Registry(tmp_path).cards()
    assert complaint in caught.value.message


@pytest.mark.parametrize("text", ["a: [", "\x00", "just words", ""])
def test_a_card_that_is_no_card_is_refused(tmp_path, text):
    folder = write(tmp_path, CARD)
    (folder / "card.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"card\.yaml"):
        Registry(tmp_path).cards()


def test_a_card_lives_in_the_folder_of_its_name(tmp_path):
    write(tmp_path, CARD).rename(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="differs from its folder"):
        Registry(tmp_path).cards()


def test_an_unknown_model_is_answered_with_those_there_are(tmp_path):
    write(tmp_path, CARD)
    write(tmp_path, {**CARD, "id": "tiny-2"})
    with pytest.raises(NotFoundError, match=r"available: tiny-1, tiny-2"):
        Registry(tmp_path).card("sora")


def test_no_models_is_an_answer(tmp_path):
    assert Registry(tmp_path / "nothing").cards() == ()


def test_a_changed_card_is_read_again(tmp_path):
    write(tmp_path, CARD)
    registry = Registry(tmp_path)
    registry.cards()
    write(tmp_path, changed("title", "Another title"))
    assert registry.card("tiny-1").title == "Another title"


def test_the_identity_follows_the_weights_and_nothing_else(tmp_path):
    write(tmp_path, CARD)
    first = Registry(tmp_path).card("tiny-1").sha256
    moved = changed("title", "New words")
    moved["files"]["vae"]["path"] = "elsewhere.bin"
    write(tmp_path, moved)
    assert Registry(tmp_path).card("tiny-1").sha256 == first
    write(tmp_path, changed("files/vae/sha256", "0" * 64))
    assert Registry(tmp_path).card("tiny-1").sha256 != first


@pytest.mark.parametrize("has_cache", [False, True])
def test_fetched_files_are_the_ones_the_card_names(tmp_path, has_cache):
    write(tmp_path / "models", CARD)
    registry = Registry(tmp_path / "models", tmp_path / "cache" if has_cache else None)
    card = registry.card("tiny-1")
    for _ in range(2):
        folder = registry.fetch(card)
        assert {name: (folder / file.path).read_bytes() for name, file in card.files.items()} == WEIGHTS
    assert folder.is_relative_to(tmp_path / ("cache" if has_cache else "models"))


@pytest.mark.parametrize("has_cache", [False, True])
@pytest.mark.parametrize("damage", [b"D" + b"d" * 2999, b"d" * 2999, b""])
def test_a_damaged_file_is_named_with_what_was_expected_and_found(tmp_path, damage, has_cache):
    write(tmp_path, CARD, {**WEIGHTS, "dit": damage})
    registry = Registry(tmp_path, tmp_path / "cache" if has_cache else None)
    with pytest.raises(CorruptObjectError, match=r"weights/dit\.bin") as caught:
        registry.fetch(registry.card("tiny-1"))
    right = CARD["files"]["dit"]
    assert caught.value.detail["expected"] in (right["sha256"], right["num_bytes"])
    assert caught.value.detail["found"] in (hashlib.sha256(damage).hexdigest(), len(damage))


def test_a_file_damaged_after_the_first_fetch_is_noticed(tmp_path):
    folder = write(tmp_path, CARD)
    registry = Registry(tmp_path)
    card = registry.card("tiny-1")
    registry.fetch(card)
    (folder / "weights/dit.bin").write_bytes(b"x" * 3000)
    with pytest.raises(CorruptObjectError):
        registry.fetch(card)


def test_an_unchanged_file_is_hashed_once(tmp_path, monkeypatch):
    write(tmp_path, CARD)
    registry = Registry(tmp_path)
    card = registry.card("tiny-1")
    registry.fetch(card)
    monkeypatch.setattr(hashlib, "file_digest", None)  # a second hash would fail
    registry.fetch(card)


def test_a_damaged_copy_is_made_again(tmp_path):
    write(tmp_path / "models", CARD)
    registry = Registry(tmp_path / "models", tmp_path / "cache")
    card = registry.card("tiny-1")
    copy_of_dit = registry.fetch(card) / "weights/dit.bin"
    copy_of_dit.write_bytes(b"x")
    registry.fetch(card)
    assert copy_of_dit.read_bytes() == WEIGHTS["dit"]


def test_a_missing_file_is_named(tmp_path):
    folder = write(tmp_path, CARD)
    (folder / "weights/dit.bin").unlink()
    registry = Registry(tmp_path)
    with pytest.raises(NotFoundError, match=r"weights/dit\.bin is missing"):
        registry.fetch(registry.card("tiny-1"))
