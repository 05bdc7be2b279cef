import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitascope_prompt.text import fold, normalise


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("  a   red\t\ncircle  ", "a red circle"),
        ("cafe\u0301", "café"),
        ("k\u200bi\u200cl\u200dl\ufeff", "kill"),
        ("\u202ereversed\u202c", "reversed"),
        ("soft\u00adhyphen", "softhyphen"),
        ("bell\x07", "bell"),
        ("tag\U000e0041\U000e0042", "tag"),
        ("filler\u3164\u115f", "filler"),
        ("bra\u2800ille", "bra ille"),
        ("star\ufe0f ⭐", "star ⭐"),
        ("private\ue000", "private"),
        ("e\u200b\u0301", "é"),
        ("日本語 текст العربية", "日本語 текст العربية"),
        ("\u200b \u2060", ""),
    ],
)
def test_what_is_kept(raw: str, kept: str) -> None:
    assert normalise(raw) == kept


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    assert "  " not in once


@pytest.mark.parametrize(
    ("written", "folded"),
    [
        ("KILL", "kill"),
        ("ｋｉｌｌ", "kill"),
        ("𝓴𝓲𝓵𝓵 𝕜𝕚𝕝𝕝 ⓚⓘⓛⓛ", "kill kill kill"),
        ("кіӏӏ", "kill"),
        ("κιll", "kill"),
        ("ḱïłľ", "kill"),
        ("k̶i̶l̶l̶", "kill"),
        ("🅺🅸🅻🅻 🅚🅘🅛🅛 ⒦⒤⒧⒧", "kill kill kill"),
        ("ᴋɪʟʟ", "kill"),
        ("Straße", "strasse"),
    ],
)
def test_disguises_are_folded(written: str, folded: str) -> None:
    assert fold(normalise(written)) == folded


@given(st.text())
def test_folding_never_fails_and_is_stable(text: str) -> None:
    assert fold(text) == fold(text)
