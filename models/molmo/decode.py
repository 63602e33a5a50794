"""Picture files to arrays: RGB as a viewer shows it, or one line that says why not.

A picture's size is known from the header of its file, which `size_of` reads alone; `read` decodes the pixels.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's own threshold for a decompression bomb: a quarter of 1 GiB of RGB pixels.
MAX_PIXELS = (1 << 30) // 4 // 3
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
# Pillow's switch for truncated files is global; readers in threads take turns while it is set.
_truncated_files = threading.Lock()


class BadPicture(UserError):
    """A picture that cannot be used; the message is one line, and `why` its reason alone."""

    def __init__(self, name: str, why: str):
        super().__init__(f"picture {name}: {why}")
        self.name, self.why = name, why


def read(source: Any, name: str | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of a picture, uint8 [H, W, 3].

    Args:
        source: a path, the bytes of a file (also as text, "data:image/png;base64,…"), an open Pillow image, or uint8
            [H, W, 3] (returned as it is), [H, W] or [H, W, 4].
        name: what messages call it; by default the path.
        max_pixels: larger pictures are refused before they are decoded.

    Orientation is that of the EXIF tag. Transparent pixels are shown on white, palettes are resolved, 16 bits are
    scaled to 8, CMYK is converted, an animation gives its first frame, and a truncated file what it has, the rest grey
    or black.

    Raises:
        BadPicture: there is no such file, it is no picture, or it has too many pixels.
    """
    name = _name_of(source) if name is None else name
    if isinstance(source, np.ndarray):
        return _from_array(source, name, max_pixels)
    with _opened(source, name, max_pixels) as image:
        try:
            with _truncated_files, _tolerant():
                image.load()
            return np.asarray(_rgb(_upright(image)))
        except (OSError, ValueError, SyntaxError, MemoryError, EOFError, OverflowError) as error:
            raise BadPicture(name, f"it cannot be decoded: {_line(error)}") from None


def size_of(source: Any, name: str | None = None, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels, upright; reads the header of a file only. Raises `BadPicture` as `read` does."""
    name = _name_of(source) if name is None else name
    if isinstance(source, np.ndarray):
        return _from_array(source, name, max_pixels).shape[:2]
    with _opened(source, name, max_pixels) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(_ORIENTATION) in _ROTATED
        except Exception:  # a damaged tag, which `read` ignores too
            turned = False
    return (width, height) if turned else (height, width)


def thumbnail(source: Any, side: int = 320) -> tuple[str, int, int]:
    """A picture of at most `side` pixels a side as text ("data:image/…;base64,…"), and its width and height.

    Small pictures keep their pixels (PNG); larger ones are JPEG. Raises `BadPicture` as `read` does.
    """
    from PIL import Image

    image = Image.fromarray(read(source))
    kind = "PNG" if max(image.size) <= side // 2 else "JPEG"
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", *image.size


@contextlib.contextmanager
def _opened(source: Any, name: str, max_pixels: int) -> Iterator[Image]:
    """The picture with its header read and its number of pixels checked; files are closed at the end."""
    from PIL import Image

    if isinstance(source, Image.Image):
        _check_size(source.size, name, max_pixels)
        yield source
        return
    if is_inline(source):
        try:
            source = base64.b64decode(source.partition(",")[2], validate=True)
        except ValueError:
            raise BadPicture(name, "it is not base64") from None
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
    if isinstance(file, str | os.PathLike) and not Path(file).is_file():
        raise BadPicture(name, "there is no such file" if not Path(file).exists() else "it is not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is checked below, and of metadata
            image = Image.open(file)
    except Image.DecompressionBombError:
        raise BadPicture(name, f"it has more than {max_pixels:,} pixels; make it smaller") from None
    except Exception as error:  # Pillow's readers raise many kinds for damaged headers
        why = "it is not a picture" if isinstance(error, Image.UnidentifiedImageError) else _line(error)
        raise BadPicture(name, why) from None
    with image:
        _check_size(image.size, name, max_pixels)
        yield image


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadPicture(name, f"its size is {width} × {height}")
    if width * height > max_pixels:
        raise BadPicture(
            name, f"{width:,} × {height:,} is more than {max_pixels:,} pixels; make it smaller"
        )  # before a byte of it is decoded


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, OverflowError):  # a damaged tag
        return image


def _rgb(image: Image) -> Image:
    """The picture in mode RGB; Pillow's own conversion would cut 16 bits off and show what is transparent."""
    from PIL import Image as images

    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I", "F"):
        values = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I") else 1.0
        top = top if values.max(initial=0.0) > 255 or image.mode.startswith("I;") else 255.0
        grey = np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255).round().astype(np.uint8)
        return images.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        shown = image.convert("RGBA")
        paper = images.new("RGBA", shown.size, "white")
        return images.alpha_composite(paper, shown).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: np.ndarray, name: str, max_pixels: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise BadPicture(name, f"an array must be uint8 [H, W, 3], not {array.dtype} {list(array.shape)}")
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    from PIL import Image

    return np.asarray(_rgb(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)))


def is_inline(source: Any) -> bool:
    """Whether a text is a picture itself and not its path."""
    return isinstance(source, str) and source.startswith("data:image/")


def _name_of(source: Any) -> str:
    if is_inline(source):
        return f"{source[:40]}…"
    return str(source) if isinstance(source, str | os.PathLike) else getattr(source, "filename", "") or "in memory"


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
