"""Which fields run, and what a refusal says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitascope_common.errors import InvalidModelError, InvalidRequestError, UnsupportedError
from vitascope_common.registry import Capability, ModelCard
from vitascope_common.registry_cards import Attention
from vitascope_gateway.request import IGNORED_FIELDS, MAX_SEED, Offer, SourceClip, VideoRequest, parse_request


def parse(card: ModelCard, **fields: Any) -> VideoRequest:
    return parse_request({"prompt": "a red circle", **fields}, Offer([card]))


def refusal(card: ModelCard, **fields: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as refused:
        parse(card, **fields)
    return refused.value


def test_what_is_left_out_is_the_cards_default(card: ModelCard) -> None:
    request = parse(card)
    params = request.params("a red circle", "")
    assert (request.seconds, request.size, params.num_frames, params.fps) == ("4", "64x64", 33, 8)
    assert (params.num_inference_steps, params.guidance_scale, params.solver) == (24, 2.5, "euler")
    assert params.model_sha256 == card.sha256
    assert request.labels == {}


def test_a_seed_is_drawn_when_none_is_given(card: ModelCard) -> None:
    seeds = {parse(card).seed for _ in range(8)}
    assert len(seeds) > 1
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert parse(card, seed=0).seed == 0
    assert parse(card, seed="42").seed == 42


@pytest.mark.parametrize("seconds", ["4", 4, "2", 2])
def test_listed_seconds_run(card: ModelCard, seconds: Any) -> None:
    assert parse(card, seconds=seconds).seconds == str(seconds)


@pytest.mark.parametrize("seconds", [4.0, " 4", "4 ", "4.0", "04", "+4", "٤", 3, -4, 10**400, True, "", [], {}, ["4"]])
def test_other_seconds_do_not_and_the_message_lists_those_that_do(card: ModelCard, seconds: Any) -> None:
    error = refusal(card, seconds=seconds)
    assert error.param == "seconds"
    assert '"2", "4"' in error.message


@pytest.mark.parametrize("size", ["64X64", "64x64 ", "1280x720", 64, ["64x64"], ""])
def test_other_sizes_do_not_run(card: ModelCard, size: Any) -> None:
    error = refusal(card, size=size)
    assert error.param == "size"
    assert '"64x64", "96x64"' in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("seed", 1.5),
        ("seed", "1e3"),
        ("seed", "٣"),
        ("seed", "9" * 5000),
        ("seed", 10**4000),
        ("seed", True),
        ("num_inference_steps", 0),
        ("num_inference_steps", 201),
        ("num_inference_steps", "many"),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("guidance_scale", "nan"),
        ("guidance_scale", "1e"),
        ("guidance_scale", -0.1),
        ("guidance_scale", 10**400),
        ("guidance_scale", [1]),
        ("fps", 24),
        ("fps", "24"),
        ("num_frames", 18),
        ("num_frames", True),
        ("strength", 0.5),
        ("negative_prompt", "x" * 201),
        ("negative_prompt", 1),
        ("negative_prompt", "a\0b"),
        ("prompt", ""),
        ("prompt", " \n\t"),
        ("prompt", "x" * 201),
        ("prompt", "a\ud800"),
        ("prompt", "a\0"),
        ("prompt", 7),
        ("prompt", None),
        ("input_reference", "data:image/png;base64,AAA"),
        ("last_frame", "data:image/png;base64,A"),
        ("metadata", "not json"),
        ("metadata", "[" * 100_000),
        ("metadata", [1]),
        ("metadata", {"a": 1}),
        ("metadata", {"a": "x" * 513}),
        ("metadata", {"a" * 65: "x"}),
        ("metadata", {"a": "\0"}),
        ("metadata", {str(number): "x" for number in range(17)}),
    ],
)
def test_a_refusal_names_the_field(card: ModelCard, field: str, value: Any) -> None:
    error = refusal(card, **{field: value})
    assert error.param == field
    assert field in error.message
    assert len(error.message) < 300


def test_solver_and_temporal_attention_are_the_cards_unless_a_request_picks_another(card: ModelCard) -> None:
    params = parse(card).params("x", "")
    assert (params.solver, params.temporal_attention) == ("euler", "")
    attention = Attention(temporal="full", allowed=("full", "window"))
    able = card.model_copy(update={"attention": attention})
    params = parse(able, solver="heun", temporal_attention="window").params("x", "")
    assert (params.solver, params.temporal_attention) == ("heun", "window")
    assert parse(able, temporal_attention="full").params("x", "").temporal_attention == ""


@pytest.mark.parametrize("value", ["causal", "Full", 1, ["full"], ""])
def test_what_the_card_does_not_allow_is_refused_with_what_it_does(card: ModelCard, value: Any) -> None:
    error = refusal(card, temporal_attention=value)
    assert (error.param, '"full"' in error.message) == ("temporal_attention", True)
    error = refusal(card, solver=value)
    assert (error.param, '"euler", "heun", "rk4"' in error.message) == ("solver", True)


def test_a_model_that_needs_a_picture_makes_nothing_from_text_alone(card: ModelCard) -> None:
    needy = card.model_copy(update={"capabilities": (Capability.IMAGE_TO_VIDEO,)})
    error = refusal(needy)
    assert error.param == "model"
    assert "image_to_video" in error.message
    parse(needy, input_reference="data:image/png;base64,AAAA")
    parse_request({"prompt": "x"}, Offer([needy]), ["first_frame"])
    with pytest.raises(InvalidRequestError, match="cannot extend a video; it can do: image_to_video"):
        parse_request({"prompt": "x"}, Offer([needy]), ["continue"])


def test_numbers_may_come_as_text_as_forms_send_them(card: ModelCard) -> None:
    request = parse(
        card, num_inference_steps="30", guidance_scale="3.5", fps="8", num_frames="33", metadata='{"a":"b"}'
    )
    assert (request.num_inference_steps, request.guidance_scale, request.labels) == (30, 3.5, {"a": "b"})


def test_a_form_may_say_numbers_as_programs_write_them(card: ModelCard) -> None:
    fields = {"prompt": "x", "strength": "1e-05", "guidance_scale": "2.5E+0"}
    request = parse_request(fields, Offer([card]), ["change"], SourceClip(33, 8))
    assert (request.strength, request.guidance_scale) == (1e-05, 2.5)
    assert refusal(card, guidance_scale="1e999").param == "guidance_scale"


def test_characters_are_refused_by_name(card: ModelCard) -> None:
    with pytest.raises(UnsupportedError) as refused:
        parse(card, characters=[{"id": "char_1"}])
    assert (refused.value.code, refused.value.param) == ("unsupported", "characters")


def test_a_size_may_come_as_its_sides_and_a_length_as_its_frames(card: ModelCard) -> None:
    assert parse(card, width=96, height="64").size == "96x64"
    assert parse(card, width=96, height=64, size="96x64").size == "96x64"
    assert (parse(card, num_frames=17).seconds, parse(card, num_frames="17").seconds) == ("2", "2")
    assert parse(card, num_frames=17, seconds="2", fps=8).seconds == "2"
    for fields, param in (
        ({"width": 96}, "height"),
        ({"height": 64}, "width"),
        ({"width": 96, "height": "tall"}, "height"),
        ({"width": True, "height": 64}, "width"),
        ({"width": 96, "height": 64, "size": "64x64"}, "size"),
        ({"width": 97, "height": 64}, "width"),
        ({"width": "96", "height": 96}, "height"),
        ({"width": 97, "height": 64, "size": "97x64"}, "size"),
        ({"num_frames": 17, "seconds": "4"}, "num_frames"),
    ):
        assert refusal(card, **fields).param == param


def test_another_name_of_a_model_is_that_model_unless_there_is_one_of_that_name(card: ModelCard) -> None:
    other = card.model_copy(update={"id": "other"})
    offer = Offer([card, other], "tiny", {"sora-2": "default", "best": "other", "tiny": "other", "gone": "nowhere"})
    found = [parse_request({"prompt": "x", "model": name}, offer).card.id for name in ("sora-2", "best", "tiny")]
    assert found == ["tiny", "other", "tiny"]
    assert parse_request({"prompt": "x"}, offer).card is card
    for name in ("gone", "sora-3", "default"):
        with pytest.raises(InvalidModelError, match="available: tiny, other"):
            parse_request({"prompt": "x", "model": name}, Offer([card, other], aliases={"gone": "nowhere"}))


@pytest.mark.parametrize(("role", "what"), [("change", "change a video"), ("continue", "extend a video")])
def test_a_model_that_cannot_says_so_and_what_it_can(text_card: ModelCard, role: str, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"The model text cannot {what}; it can do: text_to_video") as refused:
        parse_request({"prompt": "x"}, Offer([text_card]), [role], SourceClip(33, 8))
    assert (refused.value.code, refused.value.param) == ("unsupported", "model")


@pytest.mark.parametrize(("num_frames", "seconds"), [(17, "2"), (32, "2"), (33, "4"), (500, "4")])
def test_a_change_is_as_long_as_what_it_changes(card: ModelCard, num_frames: int, seconds: str) -> None:
    source = SourceClip(num_frames, 8)
    assert parse_request({"prompt": "x"}, Offer([card]), ["change"], source).seconds == seconds


def test_no_more_is_changed_than_there_is(card: ModelCard) -> None:
    for fields, num_frames in (({"seconds": "4"}, 32), ({}, 16)):
        with pytest.raises(InvalidRequestError, match=f"The video has {num_frames} frames") as refused:
            parse_request({"prompt": "x", **fields}, Offer([card]), ["change"], SourceClip(num_frames, 8))
        assert refused.value.param == "seconds"


def test_an_extension_has_its_limit_and_the_rate_of_what_it_extends(card: ModelCard) -> None:
    request = parse_request({"prompt": "x", "seconds": "2"}, Offer([card]), ["continue"], SourceClip(33, 8))
    assert (request.num_frames_before, request.params("x", "").num_frames_in_all) == (33, 33 + 17 - 5)
    for source, param in ((SourceClip(960, 8), "video"), (SourceClip(33, 24), "model")):
        with pytest.raises(InvalidRequestError) as refused:
            parse_request({"prompt": "x"}, Offer([card]), ["continue"], source)
        assert refused.value.param == param


def test_a_typo_is_noticed_and_the_closest_field_named(card: ModelCard) -> None:
    error = refusal(card, num_inference_step=30)
    assert error.param == "num_inference_step"
    assert "did you mean num_inference_steps" in error.message
    assert "known are prompt" in refusal(card, **{"\ud800zzz": 1}).message


def test_fields_of_other_servers_and_nulls_are_ignored(card: ModelCard) -> None:
    parse(card, **dict.fromkeys(IGNORED_FIELDS, "x"))
    parse(card, seconds=None, size=None, input_reference=None, metadata=None, model=None)


def test_a_model_that_is_not_here_is_refused_with_those_that_are(card: ModelCard) -> None:
    for model in ("sora-2", 7, ["tiny"], ""):
        with pytest.raises(InvalidModelError, match="available: tiny") as refused:
            parse(card, model=model)
        assert refused.value.param == "model"
    assert parse(card, model="tiny").card is card


def test_with_several_models_a_request_says_which(card: ModelCard) -> None:
    other = card.model_copy(update={"id": "other"})
    with pytest.raises(InvalidModelError, match="model is required"):
        parse_request({"prompt": "x"}, Offer([card, other]))
    assert parse_request({"prompt": "x"}, Offer([card, other], "other")).card is other
    with pytest.raises(InvalidModelError, match="available: none"):
        parse_request({"prompt": "x"}, Offer([]))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["model", "seconds", "size", "seed", "fps", "num_frames", "metadata", "guidance_scale"])


@given(fields=st.dictionaries(names | st.text(max_size=20), anything, max_size=6), prompt=anything)
def test_whatever_comes_is_understood_or_refused(card: ModelCard, fields: dict[str, Any], prompt: Any) -> None:
    try:
        request = parse_request({**fields, "prompt": prompt}, Offer([card]))
    except InvalidRequestError as error:
        assert error.param is not None  # noqa: PT017 — either outcome is right
        error.message.encode()
    else:
        request.params(request.prompt, request.negative_prompt)
