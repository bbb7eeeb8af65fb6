"""Windows end at paragraphs, headings and sentences where one is near, and as before for indexes of before."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.spec import Window
from actors.text.boundaries import text_boundaries
from actors.text.windows import windows


class Words:
    """A token is a run of word characters or a single other character that is no space."""

    def counts(self, texts: list[str]) -> np.ndarray:
        return np.array([len(self.offsets(text)[0]) for text in texts], np.int64)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spans = np.array([m.span() for m in re.finditer(r"\w+|\S", text)], dtype=np.int64).reshape(-1, 2)
        return np.arange(len(spans)), spans[:, 0], spans[:, 1]


def _chunks(text: str, size: int, overlap: int = 0) -> list[str]:
    return [text[a:b] for a, b in windows(text, Words(), Window(size, overlap, "sentences")).tolist()]


def test_the_kinds_of_places() -> None:
    text = "# One\n\nFirst one. Second (two.) Third?\n\nNew para. e.g. this\nline\n\n## Two\nText 。次の文。終"
    paragraphs, sentences, lines = (
        [text[i:].split("\n")[0][:6] for i in found.tolist()] for found in text_boundaries(text)
    )
    assert paragraphs == ["# One", "New pa", "## Two"]  # not "First": its heading is there
    assert sentences == ["Second", "Third?", "New pa", "次の文。終", "終"]
    assert "line" in lines


def test_a_cut_takes_the_best_place_that_is_near() -> None:
    words = " ".join("abcdefgh")
    assert _chunks(f"{words}. X y\n\nP q r s t u v w x z a b", 14)[0] == f"{words}. X y"  # the paragraph, not the word
    assert _chunks(f"{words}. X y z p q r s t u", 12)[0] == f"{words}."  # the sentence
    assert _chunks(" ".join("abcdefghijklmnopq"), 12)[0] == " ".join("abcdefghijkl")
    assert _chunks("A b. " + " ".join("cdefghijklmnopq"), 12)[0].endswith("k")  # the sentence is too far


def test_a_heading_goes_with_its_text() -> None:
    text = "One two three four five six seven eight nine.\n\n# Head\n\nTen eleven twelve thirteen fourteen."
    assert [chunk.strip().split("\n")[0] for chunk in _chunks(text, 13)] == [
        "One two three four five six seven eight nine.",
        "# Head",
    ]


def test_pages_are_boundaries() -> None:
    assert _chunks("a b c d e f g h\fi j k l m n o p", 9) == ["a b c d e f g h", "i j k l m n o p"]


@given(
    st.text(alphabet=st.sampled_from("ab .\n#\fÄ。"), max_size=300), st.integers(1, 40), st.integers(0, 39)
)  # fmt: skip
def test_every_character_is_in_a_window_and_none_is_too_long(text: str, size: int, overlap: int) -> None:
    window = Window(size, min(overlap, size - 1), "sentences")
    spans = windows(text, Words(), window)
    assert spans[0, 0] == 0
    assert spans[-1, 1] == len(text)
    for (a, b), (c, d) in zip(spans.tolist(), spans[1:].tolist(), strict=False):
        assert a < c <= len(text)
        assert b < d
        assert not text[b:c].strip()
    for a, b in spans.tolist():
        assert len(Words().offsets(text[a:b])[0]) <= size


@pytest.mark.parametrize("text", ["", " ", ".", "\n\n", "#", "\f\f"])
def test_texts_of_boundaries_alone(text: str) -> None:
    assert _chunks(text, 1) == [text]
