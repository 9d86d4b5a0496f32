"""What the first bytes of an image file say, before a decoder takes memory for what they promise.

Half a kilobyte of PNG may promise 2^30 pixels. As in OpenCV, an image has a limit of pixels, which the environment
sets: DNC_IMAGE_PIXELS, 2^27 if it is not set; no side is over 2^20. What counts is the memory that decoding really
takes: 8 bytes for each pixel that is allowed, which is what common images need at most. One of 16 bits, or that is
interlaced, or a progressive JPEG, takes more for a pixel, and so may have fewer.

The sizes themselves are read by the decoders (`stbi_info`, Pillow's `Image.open`), so that nobody is told another size
than the one that is decoded.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dnc.errors import DncError, ImageError

__all__ = ["ARRAY", "MAX_SIDE", "PIC", "byte_limit", "check_size", "is_beyond_stb", "is_whole", "png_size", "stb_bytes"]

ARRAY = b"\x93NUMPY"
"""How a file of numpy.save begins."""
PIC = b"\x53\x80\xf6\x34"
"""How a Softimage picture begins."""
MAX_SIDE = 1 << 20
"""Pixels of a side; also what the C++ runtime takes."""
_PIXELS = 1 << 27
_BYTES = 8
"""Of a pixel that is allowed. Measured of stb_image: 6 for an 8-bit PNG or a JPEG in RGB, 8 for RGBA."""
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_SCANS = 1000
"""Of a JPEG. Encoders write 10 or so; each of them passes over the whole image, however short it is."""
_INFLATED = 1032
"""Bytes that deflate makes of one, at most."""


def byte_limit() -> int:
    """The bytes that a file may have, and that decoding it may take. Raises DncError if DNC_IMAGE_PIXELS is none."""
    text = os.environ.get("DNC_IMAGE_PIXELS", "")
    if text and not (text.isascii() and text.isdecimal() and int(text)):
        raise DncError(f"DNC_IMAGE_PIXELS={text!r} is no number of pixels", hint=f"for instance {_PIXELS}")
    return _BYTES * (int(text) if text else _PIXELS)


def check_size(width: int, height: int, taken: int, where: str | None) -> None:
    """Raises ImageError for an image of more pixels, or that takes more bytes to decode, than is allowed."""
    limit = byte_limit()
    size = f"an image of {width} x {height} pixels"
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{size} is larger than is allowed: a side has up to {MAX_SIDE} pixels", where)
    hint = f"DNC_IMAGE_PIXELS={max(width * height, -(-taken // _BYTES))} in the environment allows it"
    if width * height > limit // _BYTES:
        raise ImageError(f"{size} is larger than is allowed: {limit // _BYTES} pixels", where, hint)
    if taken > limit:
        what = f"decoding {size} takes {taken / 1e9:.1f} GB, more than is allowed: {limit / 1e9:.1f} GB"
        raise ImageError(what, where, hint)


def png_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a PNG, which stb_image does not tell where they are beyond what it takes; None of others."""
    if not content.startswith(_PNG) or len(content) < 24:
        return None
    return struct.unpack_from(">II", content, 16)


def stb_bytes(content: bytes, width: int, height: int, have: int, want: int) -> int:
    """What stb_image takes, at most, to decode a file of this size with `have` channels into `want`: measured.

    Raises ImageError for a file that takes more than what its pixels need.
    """
    most = max(have, want)
    if content.startswith(_PNG):
        deep = content[24] == 16 or content[12:16] != b"IHDR"
        # The rows as they were inflated, and the pixels; then those with other channels; of an interlaced one, a pass.
        per_pixel = (4 if content[25] == 3 else most) * (2 if deep else 1) * (2.5 if content[28] else 2)
        _check_inflated(content, 2 * (have * (2 if deep else 1) * width * height + 8 * (height + 8)))
        # Compressed data are put together first, in memory that doubles.
        return int(per_pixel * width * height) + 2 * len(content) + 2 * height
    if content.startswith(_JPEG):
        if content.count(b"\xff\xda") > _SCANS:
            raise ImageError(f"a JPEG of more than {_SCANS} scans")
        # Each component by itself and, of a progressive one, its coefficients; both padded to whole blocks.
        _, progressive, components = _jpeg_frame(content)
        return components * (3 if progressive else 1) * (width + 32) * (height + 32) + want * width * height
    if content.startswith(b"BM"):
        per_pixel = want if want >= 3 else 4 + want
    elif content.startswith(b"GIF8"):
        per_pixel = 5 + want
    elif content.startswith((b"P5", b"P6")):
        per_pixel = 2 * (have + want)
    elif content.startswith(b"#?"):
        # Floats first.
        per_pixel = 5 * want
    else:
        per_pixel = 4 + want
    return int(per_pixel) * width * height


def _check_inflated(content: bytes, most: int) -> None:
    """Raises ImageError for a PNG whose data, which stb_image inflates to their end, become more than `most` bytes."""
    data = list(_png_data(content))
    if _INFLATED * sum(map(len, data)) <= max(most, byte_limit()):
        return
    # Of the header, stb_image takes no more than that it is there.
    inflater, found, skip = zlib.decompressobj(-zlib.MAX_WBITS), 0, 2
    for piece in data:
        rest, skip = bytes(piece[skip:]), max(skip - len(piece), 0)
        while rest and not inflater.eof:
            try:
                found += len(inflater.decompress(rest, 1 << 20))
            except zlib.error:
                # stb_image refuses it as well, after no more than was counted.
                return
            if found > most:
                raise ImageError("a PNG whose data are more than its pixels")
            rest = inflater.unconsumed_tail


def _png_data(content: bytes) -> Iterator[memoryview]:
    """What the IDAT chunks hold. Raises ImageError where one is longer than the file: stb_image takes memory for it."""
    view, place = memoryview(content), len(_PNG)
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind == b"IDAT":
            if place + 8 + length > len(content):
                raise ImageError("cannot read the image: it ends before its pixels do")
            yield view[place + 8 : place + 8 + length]
        place += 12 + length


class _Frame(NamedTuple):
    """How a JPEG is coded."""

    known: bool
    """To stb_image: neither arithmetically, nor without loss, nor with other than 8 bits."""
    progressive: bool
    components: int


def _jpeg_frame(content: bytes) -> _Frame:
    """Of the first frame; the most that stb_image could find where there is none."""
    place = 2
    while place + 10 <= len(content):
        marker = content[place + 1]
        if content[place] != 0xFF or marker == 0xFF:
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _Frame(marker <= 0xC2 and content[place + 4] == 8, marker == 0xC2, content[place + 9])
        elif marker == 1 or 0xD0 <= marker <= 0xD8:
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return _Frame(True, True, 4)


def is_beyond_stb(content: bytes) -> bool:
    """Whether a file that stb_image refuses is of a kind that it does not read, rather than damaged: so Pillow may."""
    if content.startswith(_JPEG):
        return not _jpeg_frame(content).known
    if content.startswith(b"BM"):
        # Run lengths, and JPEG or PNG inside.
        return content[30:34] not in (bytes(4), b"\3\0\0\0")
    if content.startswith(b"8BPS"):
        return content[24:26] != b"\0\3" or content[22:24] not in (b"\0\x08", b"\0\x10")
    known = (_PNG[:4], b"GIF8", b"#?RADIANCE", b"#?RGBE", PIC, b"P5", b"P6")
    return not content.startswith(known)


def is_whole(content: bytes, width: int, height: int) -> bool | None:
    """Whether all pixels are there of a file that stb_image reads: of some formats it makes up what a shorter one
    lacks. None where that is not so easily seen."""
    if content.startswith(_JPEG):
        # Cameras write more behind the end; a thumbnail, which has an end of its own, comes before the last scan.
        return content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda") or None
    try:
        if content.startswith(b"BM"):
            start, header = struct.unpack_from("<I", content, 10)[0], struct.unpack_from("<I", content, 14)[0]
            bits = struct.unpack_from("<H", content, 24 if header == 12 else 28)[0]
            rows = (width * bits + 31) // 32 * 4 * (height - 1)
            return bool(len(content) >= start + rows + (width * bits + 7) // 8)
        if content.startswith(b"GIF8"):
            return _is_whole_gif(content)
        if content.startswith(b"#?"):
            return _is_whole_hdr(content, width, height)
    except (struct.error, IndexError, ValueError):
        return False
    if content.startswith((_PNG, PIC, b"P5", b"P6")):
        # stb_image refuses others.
        return True
    if content.startswith(b"8BPS"):
        return None
    # TGA, the only format that begins with nothing of its own.
    identity, _, kind, _, colors, color_bits = struct.unpack_from("<BBBHHB", content)
    start = 18 + identity + colors * ((color_bits + 7) // 8)
    return len(content) >= start + width * height * ((content[16] + 7) // 8) if kind < 8 else None


def _is_whole_gif(content: bytes) -> bool:
    """Whether the first picture's blocks come to their end; stb_image reads no other. Raises IndexError if not."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    place = 13 + table(content[10])
    while (block := content[place]) in (0x21, 0x2C):
        picture = block == 0x2C
        place += 11 + table(content[place + 9]) if picture else 2
        while content[place]:
            place += 1 + content[place]
        if picture:
            return True
        place += 1
    return False


def _is_whole_hdr(content: bytes, width: int, height: int) -> bool:
    """Whether each row of each of the four bytes of a pixel comes to its end. Raises IndexError if not."""
    place = content.index(b"\n", content.index(b"\n\n") + 2) + 1
    if not 8 <= width < 32768 or content[place : place + 2] != b"\2\2":
        return len(content) >= place + 4 * width * height
    for _ in range(height):
        place += 4
        for _ in range(4):
            left = width
            while left > 0:
                # Over 128 as many less of the next one, else as many as follow.
                count = content[place]
                run = count > 128
                left -= count - 128 if run else count
                place += 2 if run else 1 + count
    return place <= len(content)
