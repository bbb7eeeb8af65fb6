"""Pictures that cannot be used: the message says which and why, and no picture blows the memory up."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.vision.preprocess import PictureError, load
from tests.checkpoints_vision import drawn, encoded, hollow_png


def reason(picture: bytes | str | Path | Image.Image, **options: int) -> str:
    with pytest.raises(PictureError) as caught:
        load(picture, **options)
    return str(caught.value)


def test_bytes_that_are_no_picture() -> None:
    assert reason(b"these are words").startswith("picture of 15 bytes: not readable as a picture: ")
    assert reason(b"").startswith("picture of 0 bytes: not readable as a picture")


def test_a_truncated_picture_is_no_grey_area() -> None:
    data = encoded(drawn(0, 200, 200), "JPEG")
    assert "truncated" in reason(data[: len(data) // 2])
    data = encoded(drawn(0, 200, 200), "PNG")
    assert f"picture of {len(data) // 2} bytes: not readable" in reason(data[: len(data) // 2])


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    assert reason(tmp_path / "gone.png") == f"{tmp_path}/gone.png: no such file"


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("words")
    assert reason(str(tmp_path / "notes.png")).startswith(f"{tmp_path}/notes.png: not readable as a picture")


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (1, 1, "1 x 1 is too small, a side has at least 8 pixels"),
        (5, 400, "5 x 400 is too small"),
        (10, 5000, "10 x 5000 is longer than 100 times its width"),
    ],
)
def test_sizes_that_hold_nothing(width: int, height: int, words: str) -> None:
    assert words in reason(encoded(Image.new("RGB", (width, height)), "PNG"))


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (10_000, "10000 x 10000 is 100 megapixels, the limit is 64"),
        (60_000, "more than 64 megapixels"),
    ],
)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_huge_pictures_are_refused_by_their_header(side: int, words: str) -> None:
    tracemalloc.start()
    assert words in reason(hollow_png(side, side))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_the_limit_can_be_set() -> None:
    assert "the limit is 0.001" in reason(encoded(drawn(0), "PNG"), max_pixels=1000)


def test_floats_have_no_brightness() -> None:
    assert "floating point" in reason(Image.fromarray(np.zeros((20, 20), np.float32)))


def test_formats_that_start_other_programs_are_not_decoded() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n"
    assert "not readable as a picture" in reason(script)
    assert Image.open(io.BytesIO(script)).format == "EPS", "Pillow alone would run it"
