"""Reading images: stb_image's bits, what Pillow takes over, arrays, PIL images, EXIF, and files that attack."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dnc import errors
from dnc.errors import DncError, ImageError
from dnc.runtime import images
from dnc.runtime.images import from_picture, read_image
from dnc.runtime.preprocessing import Preprocessing

Pixels = npt.NDArray[np.uint8]


def pixels(seed: int, *shape: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_reads_paths_and_bytes(tmp_path: Path) -> None:
    image = pixels(9, 6, 5, 3)
    content = encoded(Image.fromarray(image), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    for source in (content, tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(read_image(source), image)


def test_reads_the_channels_that_the_network_takes() -> None:
    image = pixels(10, 6, 5, 3)
    png = encoded(Image.fromarray(image), "PNG")
    np.testing.assert_array_equal(read_image(png, 4), np.dstack([image, np.full((6, 5), 255)]))
    np.testing.assert_array_equal(
        read_image(png, 1), Preprocessing(5, 6, 1, color="gray").match_channels(image)[..., 0]
    )
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(image[..., 0]), "PNG"), 1), image[..., 0])
    palette = encoded(Image.fromarray(image).convert("P"), "PNG", transparency=0)
    assert read_image(palette).shape == (6, 5, 3)
    with pytest.raises(ImageError, match="no 6 channels"):
        read_image(png, 6)


def test_sixteen_bits_keep_the_upper_byte() -> None:
    deep = np.array([[0, 255, 256, 0x8010, 0xFFFF]], np.uint16)
    assert read_image(encoded(Image.fromarray(deep), "PNG"), 1).tolist() == [[0, 0, 1, 0x80, 0xFF]]
    assert read_image(encoded(Image.fromarray(deep), "PNG"))[0, 3].tolist() == [0x80] * 3


def test_gray_jpegs_are_the_stored_luma() -> None:
    content = encoded(Image.fromarray(pixels(14, 16, 16, 3)), "JPEG")
    with Image.open(io.BytesIO(content)) as image:
        image.draft("YCbCr", None)
        stored = np.asarray(image)[:, :, 0]
    # Two decoders of one luma plane: their inverse transforms round apart by one at most.
    assert np.abs(read_image(content, 1).astype(int) - stored).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    content = encoded(Image.fromarray(pixels(12, 64, 64, 3)), kind)
    path = tmp_path / "damaged"
    for damaged in (content[: len(content) // 2], content[:10], b"", b"not an image", b"\0" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match="cannot read the image") as caught:
            read_image(path)
        assert caught.value.where == str(path)


def test_what_cameras_write_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preview, or data of their own; and a thumbnail with an end of its own before the picture. Without Pillow, which
    the runtime does not bring."""
    image = Image.fromarray(pixels(12, 64, 64, 3))
    content = encoded(image, "JPEG")
    thumbnail = encoded(image.resize((8, 8)), "JPEG")
    application = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = content[:2] + application + content[2:]
    monkeypatch.setitem(sys.modules, "PIL", None)
    expected = read_image(content)
    for whole in (content + bytes(1000), content + content, with_thumbnail, with_thumbnail + bytes(1000)):
        np.testing.assert_array_equal(read_image(whole), expected)
    with pytest.raises(ImageError, match="or of a format that takes Pillow") as caught:
        read_image(with_thumbnail[:-100])
    assert "pip install pillow" in caught.value.hint


@settings(max_examples=60)
@given(st.data())
def test_flipped_bytes_never_escape_as_another_error(data: st.DataObject) -> None:
    content = bytearray(encoded(Image.fromarray(pixels(13, 16, 16, 3)), data.draw(st.sampled_from(["JPEG", "PNG"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert read_image(bytes(content)).ndim == 3


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such image"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="cannot read"):
        read_image(tmp_path)


def test_pillow_decodes_where_libstb_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)[..., None].repeat(3, axis=2)
    content = encoded(Image.fromarray(smooth), "JPEG")
    expected = read_image(content)
    monkeypatch.setitem(sys.modules, "libstb", None)
    # Two decoders of one file: 1 apart after the inverse transform, 3 after the conversion of colors.
    assert np.abs(read_image(content).astype(int) - expected).max() <= 3


def test_formats_that_stb_image_does_not_read() -> None:
    image = pixels(15, 9, 7, 3)
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(image), "TIFF")), image)


def test_both_libraries_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libstb", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImageError, match="without libstb or Pillow") as caught:
        read_image(b"")
    assert caught.value.hint == "pip install libstb pillow"


def png(width: int, height: int, *, bits: int = 8, color: int = 2, interlaced: int = 0, rows: bytes = b"") -> bytes:
    """A PNG of any sizes, with any rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    """A GIF whose only picture is of one pixel, on a large canvas."""
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + picture + b"\x3b"


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def tga(width: int, height: int, kind: int = 2) -> bytes:
    return struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, width, height, 24, 0)


def psd(width: int, height: int) -> bytes:
    return b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, height, width, 8, 3) + bytes(14)


def hdr(width: int, height: int, data: bytes = b"") -> bytes:
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (height, width) + data


def pic(width: int, height: int, data: bytes = b"") -> bytes:
    head = b"\x53\x80\xf6\x34" + struct.pack(">f", 1) + bytes(80) + b"PICT"
    return head + struct.pack(">HHfHH", width, height, 1, 3, 0) + b"\0\x08\0\xe0" + data


def jpeg(width: int, height: int) -> bytes:
    """A real one whose frame says other sizes."""
    content = encoded(Image.fromarray(pixels(0, 8, 8, 3)), "JPEG", progressive=True)
    place = content.index(b"\xff\xc2") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def webp(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width, height)), "WEBP", lossless=True, quality=0, method=0)


SIDE = 4000
"""16 million pixels: a file of a kilobyte or none, and some 100 MB where it is decoded."""
BOMBS: dict[str, Callable[[int, int], bytes]] = {
    "png": png,
    "gif": gif,
    "bmp": bmp,
    "tga": tga,
    "tga with run lengths": lambda width, height: tga(width, height, 10),
    "psd": psd,
    "hdr": hdr,
    "pic": lambda width, height: pic(width, height, bytes(4)),
    "pnm": lambda width, height: b"P6 %d %d 255\n" % (width, height),
    "jpeg": jpeg,
    "webp": webp,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_more_pixels_than_are_allowed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by what the header says, and with how to allow them."""
    content = BOMBS[kind](SIDE, SIDE)
    monkeypatch.setenv("DNC_IMAGE_PIXELS", str(SIDE * SIDE - 1))
    with pytest.raises(
        ImageError, match=f"{SIDE} x {SIDE} pixels is larger than is allowed: {SIDE * SIDE - 1}"
    ) as found:
        read_image(content)
    allowed = found.value.hint.split()[0].partition("=")[2]
    assert int(allowed) >= SIDE * SIDE
    # Allowed, it is read or is damaged, but not too large.
    monkeypatch.setenv("DNC_IMAGE_PIXELS", str(30 * SIDE * SIDE))
    with contextlib.suppress(ImageError):
        assert read_image(content).shape == (SIDE, SIDE, 3)


def test_one_image_in_every_format_may_be_as_large_as_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual kinds need no more than 8 bytes for each pixel that is allowed."""
    image = pixels(1, 300, 200, 3)
    monkeypatch.setenv("DNC_IMAGE_PIXELS", str(round(300 * 200 * 1.6)))
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TGA"):
        assert read_image(encoded(Image.fromarray(image), kind)).shape == (300, 200, 3)


@pytest.mark.parametrize(("bits", "color", "interlaced"), [(16, 6, 0), (16, 2, 1), (8, 6, 1)])
def test_what_takes_more_bytes_for_a_pixel_counts_more(
    bits: int, color: int, interlaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = png(SIDE, SIDE, bits=bits, color=color, interlaced=interlaced)
    monkeypatch.setenv("DNC_IMAGE_PIXELS", str(SIDE * SIDE))
    with pytest.raises(ImageError, match=r"decoding an image of 4000 x 4000 pixels takes 0\.\d GB") as found:
        read_image(content)
    monkeypatch.setenv("DNC_IMAGE_PIXELS", found.value.hint.split()[0].partition("=")[2])
    with pytest.raises(ImageError, match="cannot read the image"):
        read_image(content)


def test_a_png_of_little_that_inflates_to_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """stb_image inflates all that there is, whatever the header says; also where Python's zlib would stop."""
    rows = (b"\0" + bytes(30)) * 10 + bytes(1 << 22)
    content = png(10, 10, rows=rows)
    assert read_image(content).shape == (10, 10, 3)
    monkeypatch.setenv("DNC_IMAGE_PIXELS", "100000")
    with pytest.raises(ImageError, match="more than its pixels"):
        read_image(content)
    # A window of 256 bytes, which stb_image does not look at.
    place = content.index(b"IDAT") + 4
    with pytest.raises(ImageError, match="more than its pixels"):
        read_image(content[:place] + b"\x08\x1d" + content[place + 2 :])
    whole = png(40, 30, rows=(b"\0" + bytes(120)) * 30)
    assert read_image(whole).shape == (30, 40, 3)


def test_a_jpeg_of_a_thousand_scans() -> None:
    content = encoded(Image.fromarray(pixels(2, 64, 64, 3)), "JPEG", progressive=True)
    place = content.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 1000 scans"):
        read_image(content[:place] + content[place:-2] * 1001 + content[-2:])


def test_a_png_that_promises_more_data_than_it_has() -> None:
    """stb_image would take memory for all of them, before it reads any."""
    content = png(4, 4, rows=bytes(52))
    place = content.index(b"IDAT") - 4
    with pytest.raises(ImageError, match="it ends before its pixels do"):
        read_image(content[:place] + struct.pack(">I", 1 << 30) + content[place + 4 :])


def test_a_pnm_of_a_thousand_comments() -> None:
    """Pillow takes time that grows with the square of their number."""
    content = b"P3 1 1 255\n" + b"#\n" * 1001 + b"1 2 3"
    with pytest.raises(ImageError, match="more than 1000 comments"):
        read_image(content)
    assert read_image(content.replace(b"#\n", b"", 1)).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "PCX", "DDS", "SGI"])
def test_formats_that_pillow_decodes_in_python(kind: str) -> None:
    """What they take is not bounded by what their headers say: an icon may hold a PNG of any size."""
    with pytest.raises(ImageError, match="its format is not known"):
        read_image(encoded(Image.fromarray(pixels(3, 16, 16, 3)), kind))


def test_files_and_sides_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="pipe or a device"):
        read_image("/dev/zero")
    with pytest.raises(ImageError, match="a side has up to 1048576 pixels"):
        read_image(bmp((1 << 20) + 1, 1))
    (tmp_path / "large.png").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("DNC_IMAGE_PIXELS", "1000")
    with pytest.raises(ImageError, match="it has more than"):
        read_image(tmp_path / "large.png")
    for wrong in ("many", "0", "-1", "1e9"):
        monkeypatch.setenv("DNC_IMAGE_PIXELS", wrong)
        with pytest.raises(DncError, match="is no number of pixels"):
            read_image(png(1, 1))


_POOR = """
import resource, sys
from dnc.errors import ImageError
from dnc.runtime.images import read_image
read_image(sys.argv[2])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20),) * 2)
try:
    read_image(sys.argv[1])
except ImageError as error:
    print(error.message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it limits the memory of a process")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_too_little_memory_is_said(kind: str, tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    Image.new("RGB", (SIDE, SIDE)).save(large, kind, **({"lossless": True, "method": 0} if kind == "WEBP" else {}))
    Image.new("RGB", (8, 8)).save(small, kind)
    done = subprocess.run([sys.executable, "-c", _POOR, large, small], capture_output=True, text=True, check=True)
    assert done.stdout == "there is not enough memory for this image\n"


@pytest.mark.parametrize("cut", [0.5, 0.9, -12, -5])
def test_a_part_of_a_png_is_refused_as_by_stb_image(cut: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would take one whose end alone is missing."""
    content = encoded(Image.fromarray(pixels(3, 40, 50, 3)), "PNG")
    part = content[: round(cut * len(content))] if cut > 0 else content[: int(cut) - 4]
    with pytest.raises(ImageError, match="cannot read the image"):
        read_image(part)
    monkeypatch.setitem(sys.modules, "libstb", None)
    with pytest.raises(ImageError, match="cannot read the image"):
        read_image(part)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "PPM"])
def test_what_stb_image_finds_damaged_is_not_tried_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(encoded(Image.fromarray(pixels(4, 40, 50, 3)), kind))
    monkeypatch.setattr(images, "_decode_with_pillow", None)
    for place in range(8, len(content), max(len(content) // 40, 1)):
        broken = bytes(content[:place]) + bytes([content[place] ^ 0xFF]) + bytes(content[place + 1 :])
        with contextlib.suppress(ImageError, TypeError):
            read_image(broken)
    with contextlib.suppress(TypeError), pytest.raises(ImageError):
        read_image(bytes(content[: len(content) // 3]))


def test_what_stb_image_does_not_read_of_a_format() -> None:
    """Run lengths in a BMP, CMYK in a PSD: Pillow does."""
    runs = bytes([4, 7, 0, 0, 4, 7, 0, 1])
    palette = bytes(range(256)) * 4
    header = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54 + 1024, 40, 4, 2, 1, 8, 1, len(runs), 0, 0, 256, 0)
    assert read_image(b"BM" + header + palette + runs).shape == (2, 4, 3)


def test_hdr_and_pic_are_read_as_by_stb_image() -> None:
    """Of an .hdr, 255 (rgb)^(1 / 2.2), rounded; flat and run-length-coded ones."""
    rgbe = bytes([128, 64, 32, 128])
    expected = [round(255 * (value / 256) ** (1 / 2.2)) for value in (128, 64, 32)]
    assert read_image(hdr(4, 3, rgbe * 12)).tolist() == [[expected] * 4] * 3
    runs = b"\x02\x02\0\x08" + b"".join(bytes([128 + 8, value]) for value in rgbe)
    assert read_image(hdr(8, 2, runs * 2)).tolist() == [[expected] * 8] * 2
    with pytest.raises(ImageError, match="cannot read the image"):
        read_image(hdr(8, 2, runs))
    assert read_image(pic(4, 3, bytes([10, 20, 30]) * 12)).tolist() == [[[10, 20, 30]] * 4] * 3
    assert read_image(pic(4, 3, bytes([10, 20, 30]) * 12), 1).tolist() == [[18] * 4] * 3


def test_two_channels_are_gray_and_alpha() -> None:
    image = pixels(5, 6, 5, 4)
    gray = Preprocessing(5, 6, 1, color="gray").match_channels(image)[:, :, 0]
    np.testing.assert_array_equal(
        read_image(encoded(Image.fromarray(image), "PNG"), 2), np.dstack([gray, image[..., 3]])
    )
    opaque = read_image(encoded(Image.fromarray(gray), "PNG"), 2)
    np.testing.assert_array_equal(opaque, np.dstack([gray, np.full_like(gray, 255)]))
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(gray), "TIFF"), 2), opaque)


def saved(array: npt.NDArray[np.generic]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", ">u2"])
def test_arrays_in_files(kind: str, tmp_path: Path) -> None:
    array = pixels(6, 7, 5, 9).astype(kind)
    np.save(tmp_path / "a.npy", array)
    for source in (tmp_path / "a.npy", saved(array), saved(np.asfortranarray(array))):
        found = read_image(source, 9)
        assert found.dtype == np.dtype(kind)
        np.testing.assert_array_equal(found, array)
    assert read_image(saved(array[..., 0]), 9).shape == (7, 5)


def test_arrays_that_are_damaged() -> None:
    whole = saved(pixels(7, 4, 4, 5))
    claim = whole.replace(b"(4, 4, 5), ", b"(99999, 99999, 5), ")
    for wrong in (
        whole[:-1],
        whole[:20],
        whole + b"x",
        claim,
        saved(np.zeros(3, np.uint8)),
        saved(np.zeros((2, 2, 2, 2))),
    ):
        with pytest.raises(ImageError, match="cannot read the array"):
            read_image(wrong, 5)
    with pytest.raises(ImageError, match="cannot read the array"):
        read_image(saved(np.array([[{}]])), 5)
    version = bytearray(whole)
    version[6] = 9
    with pytest.raises(ImageError, match="cannot read the array"):
        read_image(bytes(version), 5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "La", "F"])
def test_pil_images_of_any_mode(mode: str) -> None:
    picture = Image.fromarray(pixels(8, 6, 5, 3))
    picture = (
        picture.convert("LA").convert(mode)
        if mode == "La"
        else picture.convert(mode)
        if mode != "LAB"
        else Image.new("LAB", (5, 6))
    )
    for channels, shape in ((1, (6, 5)), (2, (6, 5, 2)), (3, (6, 5, 3)), (4, (6, 5, 4))):
        found = from_picture(picture, channels)
        assert found.shape == shape
        assert found.dtype == np.uint8
    with pytest.raises(ImageError, match="no 5 channels"):
        from_picture(picture, 5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_pil_images_of_sixteen_bits(mode: str) -> None:
    deep = np.array([[0, 255, 256, 0xFFFF]], np.uint16)
    picture = Image.fromarray(deep.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    found = from_picture(picture, 3)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, deep)
    with pytest.raises(ImageError, match="beyond 16 bits"):
        from_picture(Image.fromarray(np.full((2, 2), 1 << 16, np.int32)), 1)


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    errors._said.discard(images.TURNED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_on_demand(kind: str, orientation: int, unsaid: None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(pixels(9, 8, 16, 3)), kind, exif=exif)
    plain = read_image(content, exif=False)
    turned = read_image(content, exif=True)
    expected = Image.fromarray(plain)
    expected.info["exif"] = exif.tobytes()
    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(expected)))
    with Image.open(io.BytesIO(content)) as picture:
        assert from_picture(picture, 3, exif=True).shape == turned.shape
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_image(content), plain)
        read_image(content)
    assert [str(item.message).splitlines()[0] for item in said] == (
        []
        if orientation == 1
        else [f"the image lies on its side by its EXIF (orientation {orientation}), and is taken so, as in Darknet"]
    )


def test_a_tiff_is_turned_once(unsaid: None) -> None:
    """By Pillow, always."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(Image.fromarray(pixels(10, 8, 16, 3)), "TIFF", exif=exif)
    assert read_image(content, exif=True).shape == read_image(content, exif=False).shape == (16, 8, 3)


def test_postscript_is_not_run() -> None:
    """Pillow would have Ghostscript do it."""
    with pytest.raises(ImageError, match="its format is not known"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
