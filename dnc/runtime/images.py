"""Reading images: files as Darknet reads them, arrays that numpy.save wrote, and PIL images.

Files are decoded by stb_image as in a Darknet built without OpenCV, load_image(path, 0, 0, channels), to the same bits:
into 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGBA) channels, as many as the network takes. Gray is the luma that a
JPEG stores, of other files (77 R + 150 G + 29 B) / 256 rounded down; 16-bit samples keep their upper byte, an .hdr is
brought to 8 bits, transparency is dropped unblended, of an animation the first picture counts. The EXIF orientation is
ignored. (A Darknet with OpenCV turns the image as EXIF says; so does `exif=True`.)

What stb_image does not read (WebP, TIFF, ...), and everything where libstb is not installed, Pillow decodes the same
way; of a photograph as JPEG, 1 value in 25 of the network's input then differs from Darknet's, by about 2 of 255 at
most, which may turn the order of two boxes with nearly the same score. A file that stb_image reads but finds damaged
is not tried again.

An .npy file holds pixels (H, W, C) or (H, W) of uint8, uint16 or float32, of any number of channels.
"""

from __future__ import annotations

import importlib.util
import io
import os
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from dnc.errors import ImageError, warn
from dnc.files.reading import read_bounded
from dnc.runtime.headers import ARRAY, PIC, byte_limit, check_size, is_beyond_stb, is_whole, png_size, stb_bytes

__all__ = ["PIXELS", "TURNED", "Pixels", "from_picture", "matched", "read_content", "read_image", "upper_bytes"]

Pixels = npt.NDArray[np.uint8 | np.uint16 | np.float32]
"""(H, W, C) or (H, W)."""
PIXELS = {"uint8": 255, "uint16": 65535, "float32": 1}
"""What white is in pixels of each type. Darknet's own `image` holds floats from 0 to 1."""
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_PILLOW = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "HEIF",
    "JPEG",
    "JPEG2000",
    "JXL",
    "MPO",
    "PNG",
    "PPM",
    "PSD",
    "TGA",
    "TIFF",
    "WEBP",
)
"""Formats that Pillow may decode. Of the others it gives some to other programs (EPS, WMF), and decodes some in Python,
to what no header said (ICO may hold a PNG of any size) or in time that grows with the square of the file."""
_COMMENTS = 1000
"""Of a PNM in text: for each of them, Pillow copies a MiB."""
_PILLOW_BYTES = 24
"""That Pillow takes for a pixel at most: measured of WebP, TIFF, JPEG 2000, AVIF."""
_ORIENTATION = 0x0112
TURNED = "images that lie on their side"
"""What one warning in a process is about."""


def read_content(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file. Raises ImageError if it cannot be read, or has more bytes than an image may have."""
    try:
        return read_bounded(path, byte_limit())
    except FileNotFoundError as error:
        raise ImageError("there is no such image", os.fspath(path)) from error
    except OSError as error:
        raise ImageError(f"cannot read the image: {error.strerror or error}", os.fspath(path)) from error


def read_image(
    source: str | os.PathLike[str] | bytes,
    channels: int = 3,
    *,
    exif: bool | None = None,
    where: str | os.PathLike[str] | None = None,
) -> Pixels:
    """The pixels of an image file, or of its bytes: see the module's docstring.

    Args:
        source: a path, or what the file holds.
        channels: of the network.
        exif: whether the image is turned as its EXIF orientation says. Not if it is None, which is said once where it
            matters.
        where: what the bytes are of, for messages.

    Returns:
        uint8: (H, W) for 1 channel, else (H, W, channels); of an .npy file what it holds.

    Raises:
        ImageError: the file is missing, damaged, truncated or too large, neither library is installed, `channels` is
            none of 1 to 4, or there is not enough memory.
        DncError: DNC_IMAGE_PIXELS is no number.
    """
    where = os.fspath(source) if not isinstance(source, bytes) else where if where is None else os.fspath(where)
    try:
        content = source if isinstance(source, bytes) else read_content(source)
        if content.startswith(ARRAY):
            return _read_array(content, where)
        check_channels(channels, where)
        pixels, orientation = _decode(content, channels, where)
        return _turned(pixels, orientation, exif, where)
    except MemoryError as error:
        raise ImageError("there is not enough memory for this image", where) from error


def check_channels(channels: int, where: str | None = None) -> None:
    """Raises ImageError where no file or PIL image has as many."""
    if channels not in _MODES:
        hint = f"give the pixels as an array (H, W, {channels}), or as an .npy file"
        raise ImageError(f"an image file has no {channels} channels", where, hint)


def _decode(content: bytes, channels: int, where: str | None) -> tuple[Pixels, int]:
    """The pixels, and the EXIF orientation."""
    try:
        import libstb
    except ImportError:
        return _decode_with_pillow(content, channels, where)
    try:
        try:
            width, height, have = libstb.iminfo(content)
            check_size(width, height, stb_bytes(content, width, height, have, channels), where)
            whole = is_whole(content, width, height)
            if whole is None:
                # stb_image makes up what a truncated file lacks; Pillow refuses it.
                _decode_with_pillow(content, channels, where)
            elif not whole:
                raise ImageError("cannot read the image: it ends before its pixels do", where, _DAMAGED)
            # A damaged .pic ends the process where its channels are to be converted.
            own = 4 if content.startswith(PIC) else channels
            image = libstb.Image.open(content, channels=own, max_bytes=byte_limit())
        except (libstb.Error, ValueError) as error:
            if is_beyond_stb(content):
                return _decode_with_pillow(content, channels, where)
            if (size := png_size(content)) is not None:
                check_size(*size, 0, where)
            reason = str(error).partition(": ")[2] or str(error)
            if "outofmem" in reason.lower() or "out of memory" in reason.lower():
                raise MemoryError from error
            raise ImageError(f"cannot read the image: {reason}", where, _DAMAGED) from error
    except ImageError as error:
        error.where = where
        raise
    pixels = matched(image.numpy(), channels)
    return pixels[:, :, 0] if channels == 1 else pixels, libstb.exif_orientation(content)


_DAMAGED = "is it damaged, or no image?"


def _decode_with_pillow(content: bytes, channels: int, where: str | None) -> tuple[Pixels, int]:
    """As `_decode`. Pillow's defaults for JPEG are the nearest: accurate inverse transform, interpolated chroma."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        if importlib.util.find_spec("libstb") is None:
            hint = "pip install libstb pillow"
            raise ImageError("cannot read the image without libstb or Pillow", where, hint) from error
        what = "cannot read the image: it is damaged, no image, or of a format that takes Pillow"
        raise ImageError(what, where, "pip install pillow for WebP, TIFF and others") from error
    Image.init()
    try:
        with Image.open(io.BytesIO(content), formats=[name for name in _PILLOW if name in Image.OPEN]) as image:
            check_size(*image.size, _PILLOW_BYTES * image.width * image.height, where)
            if image.format == "PNG" and b"IEND" not in content:
                # stb_image refuses it.
                raise ImageError("cannot read the image: it ends before its pixels do", where, _DAMAGED)
            if content.startswith((b"P1", b"P2", b"P3")) and content.count(b"#") > _COMMENTS:
                raise ImageError(f"a PNM of more than {_COMMENTS} comments", where)
            if channels == 1:
                image.draft("L", None)
            pixels = from_picture(image, channels, exif=False)
            # Not before: a TIFF was turned by Pillow meanwhile.
            orientation = image.getexif().get(_ORIENTATION, 1)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise ImageError("cannot read the image: its format is not known", where, _DAMAGED) from error
    except Image.DecompressionBombError as error:
        hint = "an application may set PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError("the image is larger than Pillow allows", where, hint) from error
    # On damaged files of one format or another Pillow raises whatever it likes: KeyError, NotImplementedError, ...
    except Exception as error:
        raise ImageError(f"cannot read the image: {error}", where, _DAMAGED) from error
    return upper_bytes(pixels), orientation


def from_picture(picture: Any, channels: int, *, exif: bool | None = None) -> Pixels:
    """The pixels of a PIL image of any mode, as `read_image` gives them; of 16 bits (modes I, I;16) gray of uint16.

    Raises ImageError for a network of other than 1 to 4 channels, and where mode I has other than 16 bits.
    """
    check_channels(channels)
    if picture.mode.startswith("I"):
        gray = np.asarray(picture)
        if gray.size and not 0 <= gray.min() <= gray.max() <= PIXELS["uint16"]:
            raise ImageError("a PIL image of mode I has numbers beyond 16 bits", hint="give an array instead")
        pixels: Pixels = gray.astype(np.uint16)
    else:
        # Pillow makes RGB of every mode, and of that the others.
        mode = _MODES[channels]
        first = {mode: mode for mode in ("1", "L", "LA", "P", "RGB", "RGBA")} | {"La": "LA"}
        try:
            pixels = np.asarray(picture.convert(first.get(picture.mode, "RGBA")).convert(mode))
        except ValueError as error:
            raise ImageError(f"a PIL image of mode {picture.mode}: {error}", hint="convert it to RGB") from error
    orientation = picture.getexif().get(_ORIENTATION, 1) if hasattr(picture, "getexif") else 1
    return _turned(pixels, orientation, exif, getattr(picture, "filename", None) or None)


def matched(pixels: Pixels, channels: int) -> Pixels:
    """Pixels (H, W, C) with another number of channels, as stb_image converts them: 1, 3 or 4 to 1 to 4."""
    have = pixels.shape[2]
    if have == channels:
        return pixels
    opaque = np.full_like(pixels[:, :, :1], PIXELS[pixels.dtype.name])
    if channels <= 2:
        gray = pixels if have == 1 else _luma(pixels)[:, :, None]
        return gray if channels == 1 else np.dstack([gray, pixels[:, :, 3:] if have == 4 else opaque])
    color = pixels.repeat(3, axis=2) if have == 1 else pixels[:, :, :3]
    return color if channels == 3 else np.dstack([color, opaque])


def _luma(image: Pixels) -> Pixels:
    """(H, W) of (H, W, 3 or 4): stb_image's stbi__compute_y; of floats without rounding."""
    if image.dtype == np.float32:
        red, green, blue = (image[:, :, channel].astype(np.float32, copy=False) for channel in range(3))
        weighted: Pixels = (red * np.float32(77) + green * np.float32(150) + blue * np.float32(29)) / np.float32(256)
        return weighted
    wide = np.uint16 if image.dtype == np.uint8 else np.uint32
    gray: Pixels = ((image[:, :, :3] @ np.array([77, 150, 29], wide)) >> 8).astype(image.dtype)
    return gray


def upper_bytes(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Whole numbers of 16 bits without their lower byte, as stb_image gives them; others as they are."""
    return (pixels >> np.uint16(8) if pixels.dtype == np.uint16 else pixels).astype(np.uint8, copy=False)  # type: ignore[operator]


def _turned(pixels: Pixels, orientation: int, exif: bool | None, where: str | None) -> Pixels:
    """The pixels, turned as an EXIF orientation says if `exif`."""
    if orientation not in range(2, 9) or exif is False:
        return pixels
    if exif is None:
        what = f"the image lies on its side by its EXIF (orientation {orientation}), and is taken so, as in Darknet"
        hint = "--exif or exif=True turns such images; --no-exif or exif=False says no more"
        warn(ImageError(what, where, hint), once=TURNED)
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _read_array(content: bytes, where: str | None) -> Pixels:
    """The pixels of an .npy file, which the bytes of the file hold already."""
    file = io.BytesIO(content)
    try:
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = readers[np.lib.format.read_magic(file)](file)
        if dtype.hasobject or len(shape) not in (2, 3):
            raise ValueError(f"{shape} of {dtype} are no pixels (H, W, C)")
        pixels = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    except (KeyError, ValueError, TypeError, SyntaxError, TokenError, RecursionError, OverflowError) as error:
        raise ImageError(f"cannot read the array: {error}", where, "a file of numpy.save, (H, W, C)") from error
    return pixels
