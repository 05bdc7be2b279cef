from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from vitascope_common.errors import LinkExpiredError, PermissionDeniedError
from vitascope_common.tokens import api_key_hash, new_api_key, sign_path, verify_path

KEY = SecretStr("k" * 32)
OTHER = SecretStr("o" * 32)
NOW_S = 1_800_000_000
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def test_api_keys_are_long_random_and_recognisable():
    keys = {new_api_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("vs_") and len(key) >= 46 for key in keys)


def test_the_hash_of_a_key_is_stable_and_hides_it():
    assert api_key_hash("vs_abc") == api_key_hash("vs_abc") != api_key_hash("vs_abd")
    assert len(api_key_hash("vs_abc")) == 64


@given(path=text, filename=st.none() | text)
def test_a_signed_link_opens_and_gives_its_parameters_back(path, filename):
    query = sign_path(path, NOW_S + 60, KEY, filename=filename)
    assert verify_path(path, query, NOW_S, KEY) == ({} if filename is None else {"filename": filename})


@given(
    st.tuples(text, st.integers(0, 10**12), st.none() | text),
    st.tuples(text, st.integers(0, 10**12), st.none() | text),
)
def test_no_two_links_share_a_signature(one, other):
    def signature(link):
        path, expires, filename = link
        return dict(parse_qsl(sign_path(path, expires, KEY, filename=filename)))["signature"]

    assert (signature(one) == signature(other)) == (one == other)


def test_a_link_expires():
    query = sign_path("/v/a.mp4", NOW_S, KEY)
    verify_path("/v/a.mp4", query, NOW_S - 0.1, KEY)
    with pytest.raises(LinkExpiredError):
        verify_path("/v/a.mp4", query, NOW_S, KEY)


def test_keys_rotate():
    query = sign_path("/v/a.mp4", NOW_S + 60, KEY)
    both = SecretStr(f"{OTHER.get_secret_value()},{KEY.get_secret_value()}")
    verify_path("/v/a.mp4", query, NOW_S, [OTHER, KEY])
    verify_path("/v/a.mp4", query, NOW_S, both)
    assert sign_path("/v/a.mp4", NOW_S + 60, both) == sign_path("/v/a.mp4", NOW_S + 60, OTHER)
    with pytest.raises(PermissionDeniedError):
        verify_path("/v/a.mp4", query, NOW_S, OTHER)


def altered(**changes):
    params = dict(parse_qsl(sign_path("/v/a.mp4", NOW_S + 60, KEY, filename="video.mp4")))
    params.update(changes)
    return urlencode({name: value for name, value in params.items() if value is not None})


@pytest.mark.parametrize(
    "query",
    [
        "",
        "&&&",
        "signature=",
        "%",
        "expires=1&signature=%C3%A9",
        altered(expires=str(NOW_S + 61)),
        altered(expires=f"+{NOW_S + 60}"),
        altered(expires="1" * 5000),
        altered(expires="\u0661"),
        altered(filename="x.exe"),
        altered(filename=None),
        altered(signature=None),
        altered(signature="A" * 43),
        altered(download="1"),
        altered() + "&variant=thumbnail",
        altered() + "&filename=x.exe",
        altered() + "&signature=x",
        altered() + "&a=1" * 10,
        altered() + "&filename=%FF",
    ],
)
def test_whatever_is_changed_closes_the_link(query):
    with pytest.raises(PermissionDeniedError) as caught:
        verify_path("/v/a.mp4", query, NOW_S, KEY)
    assert caught.value.code == "permission_denied"


def test_a_link_opens_no_other_path():
    with pytest.raises(PermissionDeniedError):
        verify_path("/v/b.mp4", sign_path("/v/a.mp4", NOW_S + 60, KEY), NOW_S, KEY)


@given(st.text(max_size=200))
def test_no_query_makes_it_crash(query):
    with pytest.raises(PermissionDeniedError):
        verify_path("/v/a.mp4", query, NOW_S, KEY)


def test_an_empty_key_signs_nothing():
    with pytest.raises(ValueError, match="empty"):
        sign_path("/v/a.mp4", NOW_S, SecretStr(""))


def test_the_boundaries_between_parameters_are_signed():
    one = sign_path("/v", NOW_S, KEY, filename="a")
    other = sign_path(f"/v7:expires{len(str(NOW_S))}:{NOW_S}", NOW_S, KEY, filename="a")
    assert dict(parse_qsl(one))["signature"] != dict(parse_qsl(other))["signature"]
