import copy
import hashlib
import threading

import pytest
import yaml
from structlog.testing import capture_logs

from vitascope_common.errors import ConfigurationError, CorruptObjectError, NotFoundError
from vitascope_common.registry import Capability, Registry, load_card

WEIGHTS = {"vae": b"v" * 100, "dit": b"d" * 3000, "text_encoder": b"t" * 50}
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
CLASSIFIER = {
    **{name: CARD[name] for name in ("engine", "title", "description", "licence", "created", "provenance")},
    "id": "shapes-1",
    "kind": "classifier",
    "architecture": {"classifier": {"width": 16}},
    "files": {"classifier": CARD["files"]["dit"]},
    "preprocessing": {"num_frames": 4, "size": "64x64", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    "classes": {"shape": ["circle", "square"]},
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
    width_px, height_px = (int(side) for side in card.defaults.size.split("x"))
    larger = f"{2 * width_px}x{2 * height_px}"
    assert card.estimate_s(20, 17, larger) == pytest.approx(0.5 + 4 * 0.001 * 20 * 17)
    assert card.shift_for(card.defaults.size) == card.defaults.shift
    assert card.shift_for(larger) == pytest.approx(2 * card.defaults.shift)


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
        ("files/dit/path", "weights/vae.bin", "two files have the same path"),
        ("files/dit/path", "../secret", "must be a path inside"),
        ("files/dit/path", "/etc/passwd", "must be a path inside"),
        ("files/dit/sha256", "abc", "files.dit.sha256"),
        ("files", {}, "files"),
        ("group_size", 0, "group_size"),
        ("cost/per_step_frame_s", 0, "cost.per_step_frame_s"),
        ("pool", None, "pool: Field required"),
        ("colour", "blue", "colour: Extra inputs"),
        ("kind", "sculpture", "kind: must be one of generate, classifier"),
        ("kind", ["generate"], "kind: must be one of"),
        ("kind", None, "kind: must be one of"),
        ("kind", "classifier", "preprocessing: Field required"),
        ("capabilities", ["levitation"], "capabilities.0: Input should be 'text_to_video'"),
        ("capabilities", [], "capabilities"),
        ("capabilities", ["keyframes", "keyframes"], "capabilities repeats a value"),
        ("solvers", ["rk4"], "defaults.solver euler is not one of solvers"),
        ("attention", {"temporal": "sideways"}, "attention.temporal"),
        ("attention", {"temporal": "full", "allowed": ["causal"]}, "temporal full is not one of allowed"),
        ("parallelism", {"tensor_parallel": [0]}, "parallelism.tensor_parallel.0"),
        ("parallelism", {"tensor_paralel": [1]}, "parallelism.tensor_paralel"),
        ("defaults/guidance_start", 1.5, "defaults.guidance_start"),
        ("defaults/guidance_rescale", -0.1, "defaults.guidance_rescale"),
        ("architecture/text_encoder", {"type": 5}, "type must be a word"),
        ("attention", {"window": 0}, "attention.window"),
        ("attention", {"num_anchors": -1}, "attention.num_anchors"),
        ("files/dit/path", "card.yaml", "must not be the card's own"),
        ("files/dit/path", "./card.yaml/dit.bin", "must not be the card's own"),
        ("files/dit/path", "weights", "file weights/text_encoder.bin lies below another file"),
        ("files/dit/path", "weights/./vae.bin", "two files have the same path"),
        ("architecture/audio", {}, "architecture.audio: Extra inputs"),
        ("id", "../x", "id"),
        ("created", "yesterday", "created"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused_by_name(tmp_path, path, value, complaint):
    folder = write(tmp_path, CARD)
    (folder / "card.yaml").write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(ConfigurationError, match=r"card\.yaml") as caught:
        Registry(tmp_path).card("tiny-1")
    assert complaint in caught.value.message
    assert Registry(tmp_path).cards() == ()
    with pytest.raises(ConfigurationError, match=r"card\.yaml"):
        load_card(folder / "card.yaml")


def test_a_guidance_interval_runs_down(tmp_path):
    card = changed("defaults/guidance_start", 0.3)
    card["defaults"]["guidance_end"] = 0.7
    folder = write(tmp_path, card)
    with pytest.raises(ConfigurationError, match="guidance_end exceeds guidance_start"):
        load_card(folder / "card.yaml")


def test_a_card_of_before_means_what_it_meant(tmp_path):
    write(tmp_path, {**CARD, "attention": {"temporal": "causal"}, "parallelism": {"tensor_parallel": [1, 2]}})
    card = Registry(tmp_path).card("tiny-1")
    assert card.capabilities == (Capability.TEXT_TO_VIDEO, Capability.NEGATIVE_PROMPT)
    assert card.solvers == ("euler", "heun", "rk4")
    assert [card.attention.allows(mode) for mode in ("full", "causal", "window")] == [False, True, False]
    defaults = card.defaults
    assert (defaults.guidance_start, defaults.guidance_end, defaults.guidance_rescale) == (1.0, 0.0, 0.0)
    assert card.architecture.text_encoder_type == "ngram"
    assert card.parallelism["tensor_parallel"] == [1, 2]
    dumped = card.model_dump(mode="json")
    assert (dumped["attention"]["temporal"], dumped["architecture"]["text_encoder"]) == ("causal", {})


def test_a_card_says_what_may_be_combined(tmp_path):
    card = {
        **changed("architecture/text_encoder", {"type": "t5", "width": 4}),
        "capabilities": ["image_to_video", "keyframes"],
        "solvers": ["unipc", "euler"],
        "attention": {"temporal": "full", "allowed": ["full", "window"]},
    }
    write(tmp_path, card)
    found = Registry(tmp_path).card("tiny-1")
    assert found.capabilities == ("image_to_video", "keyframes")
    assert found.attention.allows("window")
    assert not found.attention.allows("causal")
    assert found.architecture.text_encoder_type == "t5"
    assert found.num_bytes == sum(map(len, WEIGHTS.values()))


def test_a_classifier_is_no_model_that_makes_clips(tmp_path):
    write(tmp_path, CARD)
    write(tmp_path, CLASSIFIER)
    registry = Registry(tmp_path)
    assert [card.id for card in registry.cards()] == ["tiny-1"]
    assert [card.id for card in registry.classifiers()] == ["shapes-1"]
    card = registry.classifier("shapes-1")
    assert (card.preprocessing.num_frames, card.classes["shape"]) == (4, ("circle", "square"))
    assert (registry.fetch(card) / "weights/dit.bin").read_bytes() == WEIGHTS["dit"]
    with pytest.raises(NotFoundError, match="no model 'shapes-1'; available: tiny-1"):
        registry.card("shapes-1")
    with pytest.raises(NotFoundError, match="no classifier 'tiny-1'; available: shapes-1"):
        registry.classifier("tiny-1")


@pytest.mark.parametrize("text", ["a: [", "\x00", "just words", "", "created: 2026-99-99"])
def test_a_card_that_is_no_card_is_refused(tmp_path, text):
    folder = write(tmp_path, CARD)
    (folder / "card.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"card\.yaml"):
        Registry(tmp_path).card("tiny-1")


DEEP = 400 * "[" + 400 * "]"


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ("&a {x: *a}", "a card has no aliases"),
        ("!!bool maybe", "a card has no tags"),
        (DEEP, "more than 32 levels"),
        (100_000 * "[", "more than 32 levels"),
        ("[" + 100_000 * "1," + "]", "too many values"),
        ("x" * 300_000, "more than the 262144 bytes"),
    ],
    ids=["alias", "tag", "deep", "endless", "many", "long"],
)
def test_a_card_that_would_never_end_takes_no_other_down(tmp_path, told, complaint):
    write(tmp_path, CARD)
    folder = write(tmp_path, {**CARD, "id": "tiny-2"})
    (folder / "card.yaml").write_text(f"id: tiny-2\nprovenance: {told}\n")
    registry = Registry(tmp_path)
    assert [card.id for card in registry.cards()] == ["tiny-1"]
    problem = registry.entries()["tiny-2"]
    assert isinstance(problem, ConfigurationError)
    assert complaint in problem.message
    assert registry.entries()["tiny-2"] is problem  # not read again
    with pytest.raises(ConfigurationError, match=r"tiny-2/card\.yaml"):
        load_card(folder / "card.yaml")


def test_a_card_lives_in_the_folder_of_its_name(tmp_path):
    write(tmp_path, CARD).rename(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="differs from its folder"):
        Registry(tmp_path).card("other")
    with pytest.raises(NotFoundError):
        Registry(tmp_path).card("tiny-1")


def test_a_broken_card_takes_no_other_down_and_is_logged_once(tmp_path):
    write(tmp_path, CARD)
    folder = write(tmp_path, {**CARD, "id": "tiny-2"})
    (folder / "card.yaml").write_text("id: [")
    registry = Registry(tmp_path)
    with capture_logs() as logs:
        for _ in range(3):
            assert [card.id for card in registry.cards()] == ["tiny-1"]
            assert registry.card("tiny-1").id == "tiny-1"
    assert [(log["event"], log["model"]) for log in logs] == [("model.unusable", "tiny-2")]
    assert list(registry.entries()) == ["tiny-1", "tiny-2"]
    assert isinstance(registry.entries()["tiny-2"], ConfigurationError)
    with pytest.raises(ConfigurationError, match=r"tiny-2/card\.yaml: not valid YAML"):
        registry.card("tiny-2")
    write(tmp_path, {**CARD, "id": "tiny-2"})
    assert [card.id for card in registry.cards()] == ["tiny-1", "tiny-2"]


def test_models_come_and_go_while_it_runs(tmp_path):
    registry = Registry(tmp_path / "models")
    assert registry.cards() == ()
    folder = write(tmp_path / "models", CARD)
    assert [card.id for card in registry.cards()] == ["tiny-1"]
    assert (registry.fetch(registry.card("tiny-1")) / "weights/dit.bin").read_bytes() == WEIGHTS["dit"]
    (folder / "card.yaml").unlink()
    assert registry.cards() == ()
    with pytest.raises(NotFoundError):
        registry.card("tiny-1")


@pytest.mark.parametrize("model_id", ["../models/tiny-1", "tiny-1/../tiny-1", "/etc", "", ".", "tiny-1\0", "x" * 5000])
def test_an_id_never_leads_out_of_the_folder(tmp_path, model_id):
    write(tmp_path / "models", CARD)
    with pytest.raises(NotFoundError, match="available: tiny-1"):
        Registry(tmp_path / "models").card(model_id)


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


def test_the_identity_follows_the_weights_and_how_they_are_run(tmp_path):
    write(tmp_path, CARD)
    first = Registry(tmp_path).card("tiny-1").sha256
    moved = changed("title", "New words")
    moved["files"]["vae"]["path"] = "elsewhere.bin"
    moved["attention"] = {"temporal": "full"}  # what it is where a card does not say
    write(tmp_path, moved)
    assert Registry(tmp_path).card("tiny-1").sha256 == first
    others = (
        changed("files/vae/sha256", "0" * 64),
        changed("engine", "other"),
        changed("architecture/dit", {"width": 8, "num_heads": 4}),
        {**CARD, "attention": {"temporal": "causal"}},
        {**CARD, "attention": {"window": 2}},
    )
    found = {first}
    for other in others:
        write(tmp_path, other)
        found.add(Registry(tmp_path).card("tiny-1").sha256)
    assert len(found) == 1 + len(others)


def test_a_classifier_built_otherwise_is_another_one(tmp_path):
    write(tmp_path, CLASSIFIER)
    first = Registry(tmp_path).classifier("shapes-1").sha256
    write(tmp_path, {**CLASSIFIER, "architecture": {"classifier": {"width": 32}}})
    assert Registry(tmp_path).classifier("shapes-1").sha256 != first


def test_fetched_files_are_the_ones_the_card_names(tmp_path):
    write(tmp_path, CARD)
    registry = Registry(tmp_path)
    card = registry.card("tiny-1")
    for _ in range(2):
        folder = registry.fetch(card)
        assert {name: (folder / file.path).read_bytes() for name, file in card.files.items()} == WEIGHTS


@pytest.mark.parametrize("damage", [b"D" + b"d" * 2999, b"d" * 2999, b""])
def test_a_damaged_file_is_named_with_what_was_expected_and_found(tmp_path, damage):
    write(tmp_path, CARD, {**WEIGHTS, "dit": damage})
    registry = Registry(tmp_path)
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
    monkeypatch.setattr(hashlib, "sha256", None)  # a second hash would fail
    registry.fetch(card)


def test_who_asks_for_another_model_does_not_wait_for_a_fetch(tmp_path, monkeypatch):
    write(tmp_path, CARD)
    write(tmp_path, {**CARD, "id": "tiny-2"})
    registry = Registry(tmp_path)
    first, second = registry.cards()
    begun, goes_on = threading.Event(), threading.Event()

    def check_slowly(path, file):
        if "tiny-1" in path.parts:
            begun.set()
            assert goes_on.wait(30)

    monkeypatch.setattr("vitascope_common.registry.check_file", check_slowly)
    fetching = threading.Thread(target=registry.fetch, args=(first,))
    asking = threading.Thread(target=lambda: (registry.card("tiny-2"), registry.fetch(second)), daemon=True)
    fetching.start()
    try:
        assert begun.wait(30)
        asking.start()
        asking.join(30)
        assert not asking.is_alive()
    finally:
        goes_on.set()
        fetching.join(30)


def test_a_missing_file_is_named(tmp_path):
    folder = write(tmp_path, CARD)
    (folder / "weights/dit.bin").unlink()
    registry = Registry(tmp_path)
    with pytest.raises(NotFoundError, match=r"weights/dit\.bin is missing"):
        registry.fetch(registry.card("tiny-1"))
