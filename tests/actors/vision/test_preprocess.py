"""Pictures of every kind end as the same upright RGB square, with the numbers that torchvision's transforms give."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from actors.vision.preprocess import MEAN, STD, load, normalised, pixels_of, prepare
from tests.checkpoints_vision import drawn, encoded

RAMP = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (100, 333), (224, 224), (223, 225), (30, 1000)])
def test_the_square_is_cut_as_torchvision_cuts_it(width: int, height: int) -> None:
    image = drawn(0, width, height)
    short, long = min(width, height), max(width, height)
    longer = int(224 * long / short)
    resized = image.resize((longer, 224) if width > height else (224, longer), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 224) / 2.0), round((resized.height - 224) / 2.0)
    np.testing.assert_array_equal(pixels_of(image), np.asarray(resized)[top : top + 224, left : left + 224])


def test_pixels_are_normalised_by_channel() -> None:
    pixels = np.zeros((1, 4, 4, 3), np.uint8)
    pixels[..., 1] = 255
    values = normalised(pixels, torch.device("cpu"), torch.float32)
    assert values.shape == (1, 3, 4, 4)
    expected = [(level - mean) / std for level, mean, std in zip((0, 1, 0), MEAN, STD, strict=True)]
    np.testing.assert_allclose(values[0, :, 2, 2].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(RAMP).convert("RGB").convert(mode)
    assert load(image).mode == "RGB"
    assert np.asarray(load(image)).std() > 10


def test_sixteen_bit_pictures_are_scaled_and_not_clipped() -> None:
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert deep.mode.startswith("I")
    grey = np.asarray(load(encoded(deep, "PNG")))
    np.testing.assert_array_equal(grey[..., 0], RAMP)


def test_cmyk_jpegs_and_palettes_decode() -> None:
    image = drawn(1)
    cmyk = np.asarray(load(encoded(image.convert("CMYK"), "TIFF"))).astype(int)
    assert np.abs(cmyk - np.asarray(image)).mean() < 3
    palette = image.quantize(64)
    np.testing.assert_array_equal(load(encoded(palette, "PNG")), palette.convert("RGB"))


def test_an_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert np.asarray(load(data))[5, 5].tolist() == [255, 0, 0]


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RAMP), "JPEG", exif=exif)
    assert load(data).size == (48, 64)


def test_the_thumbnail_is_small_and_keeps_its_shape() -> None:
    prepared = prepare(encoded(drawn(0, 640, 320), "PNG"), thumbnail_side=160)
    assert prepared.pixels.shape == (224, 224, 3)
    thumbnail = Image.open(io.BytesIO(prepared.thumbnail))
    assert (thumbnail.format, thumbnail.size) == ("JPEG", (160, 80))
