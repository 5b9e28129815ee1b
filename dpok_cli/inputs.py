"""Files of the user, whichever program and system wrote them: texts, images and paths."""

from __future__ import annotations

import codecs
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dpok_cli.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: What Pillow reads by itself; some other formats would have it run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: Pillow's modes with defined colours. In I and F (32-bit numbers) nothing says which is white.
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"}
_MODES |= {"CMYK", "YCbCr", "LAB", "HSV"}
#: The EXIF tag that says how to turn an image.
_ORIENTATION = 0x0112

#: How far Pillow scales grey values of 2 and 4 bits, but not the one that is transparent.
_SCALES = {"L;2": 85, "L;4": 17}

#: The variable that names the folder of what dpok keeps for the user.
CACHE = "DPOK_CACHE"

AnyPath = TypeVar("AnyPath", str, Path)
Result = TypeVar("Result")


def at_home(path: AnyPath) -> AnyPath:
    """Return a path with a leading ``~`` replaced by the home folder, as a shell does."""
    return type(path)(os.path.expanduser(path))


def cache_folder() -> Path:
    """Return the folder of what dpok keeps for the user between runs; it need not exist.

    That is the environment's `DPOK_CACHE`, or dpok in the user's cache.
    """
    if given := os.environ.get(CACHE):
        return at_home(Path(given)).absolute()
    return at_home(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "dpok"


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; bytes that are not UTF-8 and lone surrogates cannot.

    Python keeps such bytes of a command line or a file name as lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text(file: Path, what: str = "") -> str:
    r"""Read UTF-8, or UTF-16 with its byte order mark; the mark is left out, and lines end in \n.

    ``what`` precedes the path in an error, as "the prompt file ". Raises InputError.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {what}{file}: {error.strerror}.") from error
    marks = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE
    try:
        text = data.decode("utf-16" if data.startswith(marks) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise InputError(
            f"Cannot read {what}{file}: line {line} is not UTF-8 text. Save it as UTF-8."
        ) from error
    if "\0" in text:  # which is UTF-8, but no text
        line = 1 + text.count("\n", 0, text.index("\0"))
        raise InputError(
            f"Cannot read {what}{file}: line {line} has a NUL byte, as in a binary file, or in"
            " UTF-16 without its byte order mark. Save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_image(file: Path) -> None:
    """Raise InputError unless the header of an image can be read, and its colours are defined."""
    _open(file, lambda image: None)


def read_image(file: Path) -> Image:
    """Read an image as `as_shown` returns it; raises InputError, which names the file."""
    return _open(file, as_shown)


def as_shown(image: Image) -> Image:
    """Return an image in 8-bit RGB as a viewer shows it: upright, in sRGB, on white.

    Of several frames or pages it is the first. Metadata and colour profiles that cannot be parsed
    are ignored. Raises what Pillow raises for damaged pixels, and ValueError for 32-bit numbers.
    """
    from PIL import Image, ImageOps

    _check_mode(image)
    tiles = getattr(image, "tile", ())
    samples = tiles[0][3] if tiles else None  # how the file writes them
    image.load()  # before the metadata: some of it may come after the pixels
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    if _is_16_bit(image):
        image = _eight_bits(image)
    if "transparency" in image.info:
        image.info["transparency"] = _transparent(image.info["transparency"], samples)
    if image.mode == "La":  # Pillow turns it into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "CMYK"):  # their profiles are for these modes
        image = image.convert("RGB")
    image = _in_srgb(image, profile)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    flat = image.convert("RGB")
    flat.info.clear()
    if orientation in range(2, 9):
        flat.getexif()[_ORIENTATION] = orientation
        flat = ImageOps.exif_transpose(flat)
    return flat


def _open(file: Path, use: Callable[[Image], Result]) -> Result:
    """Open an image and return what ``use`` makes of it; raises InputError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, for metadata and large images
            with Image.open(file, formats=FORMATS) as image:
                _check_mode(image)
                return use(image)
    except Exception as error:  # Pillow raises many kinds for damaged files
        why = str(error) or type(error).__name__
        raise InputError(
            f"{file} cannot be read as an image: {why.rstrip('.')}. Repair it, or remove its line"
            " from metadata.jsonl."
        ) from error


def _check_mode(image: Image) -> None:
    if image.mode not in _MODES and not _is_16_bit(image):
        raise ValueError(
            f"its pixels are 32-bit numbers (mode {image.mode}), of which nothing says which is"
            " white; save it with 8 or 16 bits"
        )


def _is_16_bit(image: Image) -> bool:
    """Whether an image is grey with 16 bits; older Pillows read such a PNG as I."""
    return image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")


def _eight_bits(image: Image) -> Image:
    """Return a grey image of 16 bits in L, or in LA if one of its values is transparent."""
    import numpy as np
    from PIL import Image

    values = np.array(image)
    grey = Image.fromarray((values / 257).round().astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey = Image.merge("LA", (grey, Image.fromarray(opaque)))
    return grey


def _transparent(value: Any, samples: object) -> Any:
    """Return the transparent value of a PNG on the scale of the pixels that Pillow reads."""
    if samples == "RGB;16B":
        return tuple(part >> 8 for part in value)
    return value * _SCALES.get(samples, 1) if isinstance(samples, str) else value


def _orientation(image: Image) -> object:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # as many kinds as there are ways to be damaged
        return None


def _in_srgb(image: Image, profile: bytes | None) -> Image:
    """Return an image in sRGB by its colour profile; without one that fits, as it is."""
    if not profile:
        return image
    from io import BytesIO

    from PIL import ImageCms

    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        result = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode=mode
        )
    except (ImportError, OSError, ImageCms.PyCMSError):
        return image
    return image if result is None else result
