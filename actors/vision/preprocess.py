"""Decodes pictures to the pixels that the vision tower takes: upright, RGB, shortest side 224, the middle square.

CPU only.

Strict where upstream guesses: a truncated file is an error and no grey area, 16-bit pictures are scaled and not clipped
to white, a palette is applied before resizing, a photo is rotated by its EXIF orientation. Sizes are checked on the
header, before anything is decoded, so that no picture takes more than `MAX_PIXELS` times four bytes.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.extras import require_extra
from actors.transfers import to_device

try:
    from PIL import Image, ImageOps
except ModuleNotFoundError:
    require_extra("vision", "reading pictures")
    raise

Picture = bytes | str | Path | Image.Image
"""An encoded picture, the path of one, or a decoded one."""
Pixels = npt.NDArray[np.uint8]

SIZE = 224
MAX_PIXELS = 64 * 10**6
"""64 megapixels: 256 MB decoded."""
MIN_SIDE = 8
MAX_ASPECT = 100
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")
"""Formats that may be decoded; Pillow has more, some of which start other programs (EPS)."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, which the tower was trained with."""


class PictureError(ValueError):
    """Signals that a picture cannot be used; the message names it and the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Holds a decoded picture: the pixels for the tower, uint8 (size, size, 3), and a small JPEG for people."""

    pixels: Pixels
    thumbnail: bytes


def prepare(
    picture: Picture,
    *,
    size: int = SIZE,
    max_pixels: int = MAX_PIXELS,
    thumbnail_side: int = 160,
    name: str | None = None,
) -> Prepared:
    """Decodes a picture once, for the tower and for its thumbnail (none if `thumbnail_side` is 0). See `load`."""
    image = load(picture, max_pixels=max_pixels, name=name)
    thumbnail = thumbnail_of(image, thumbnail_side) if thumbnail_side else b""
    return Prepared(pixels_of(image, size), thumbnail)


def load(picture: Picture, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Decodes an upright RGB image; of an animation the first frame, of a picture with transparency the colours alone.

    Raises PictureError, which calls the picture by `name`, or by its path where there is no name.
    """
    name = _name(picture) if name is None else name
    try:
        image = picture if isinstance(picture, Image.Image) else _open_image(picture)
        _check_size(image.size, max_pixels, name)
        return _convert_to_rgb(ImageOps.exif_transpose(image), name)
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: more than {max_pixels / 1e6:g} megapixels") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ... by kind of damage
        raise PictureError(f"{name}: not readable as a picture: {error}") from error


def _name(picture: Picture) -> str:
    if isinstance(picture, bytes):
        return f"picture of {len(picture)} bytes"
    return "picture" if isinstance(picture, Image.Image) else str(picture)


def _open_image(picture: bytes | str | Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is checked next
        return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS)


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        limit = f"the limit is {max_pixels / 1e6:g}"
        raise PictureError(f"{name}: {width} x {height} is {width * height / 1e6:.0f} megapixels, {limit}")
    if min(size) < MIN_SIDE:
        raise PictureError(f"{name}: {width} x {height} is too small, a side has at least {MIN_SIDE} pixels")
    if max(size) > MAX_ASPECT * min(size):
        raise PictureError(f"{name}: {width} x {height} is longer than {MAX_ASPECT} times its width")


def _convert_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # convert() would clip at 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise PictureError(f"{name}: holds floating point numbers, whose brightness is not defined")
    return image.convert("RGB")


def pixels_of(image: Image.Image, size: int = SIZE) -> Pixels:
    """Resizes an RGB image to uint8 (size, size, 3): bicubic to a shortest side of `size`, then the middle square."""
    width, height = image.size
    short = min(width, height)
    resized = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def thumbnail_of(image: Image.Image, side: int) -> bytes:
    """Encodes an RGB image as a JPEG whose longer side is at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def normalised(pixels: Pixels, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normalises uint8 (n, size, size, 3) to (n, 3, size, size) with CLIP's mean and standard deviation taken out."""
    values = to_device(np.require(pixels, requirements="W"), device).permute(0, 3, 1, 2).float() / 255
    mean, std = (to_device(np.array(v, np.float32), device).view(3, 1, 1) for v in (MEAN, STD))
    return ((values - mean) / std).to(dtype)
