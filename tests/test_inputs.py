"""Texts, images and paths of the user."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dpok_cli.errors import InputError
from dpok_cli.inputs import (
    as_shown,
    at_home,
    cache_folder,
    check_image,
    is_unicode,
    read_image,
    read_text,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def pixels(image):
    assert image.mode == "RGB"
    return [image.getpixel((column, 0)) for column in range(image.width)]


def of(mode, *values, palette=None):
    """An image of one row."""
    image = Image.new(mode, (len(values), 1))
    if palette:
        image.putpalette(palette)
    for column, value in enumerate(values):
        image.putpixel((column, 0), value)
    return image


def png(depth, colour_type, row, transparent):
    """A PNG of two pixels, byte by byte: Pillow does not write all that it reads."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [*chunks, (b"IEND", b"")])


GREY16 = Image.fromarray(np.array([[0, 0x8080, 0xFFFF]], np.uint16))
TWO = [*RED, *GREEN]


@pytest.mark.parametrize(
    ("image", "kind", "options", "shown"),
    [
        (of("RGBA", (255, 0, 0, 0), (0, 255, 0, 255)), "PNG", {}, [WHITE, GREEN]),
        (of("RGBA", (0, 0, 0, 51)), "PNG", {}, [(204, 204, 204)]),
        (of("RGBA", (255, 0, 0, 0)), "WEBP", {"lossless": True, "exact": True}, [WHITE]),
        (of("RGBA", (255, 0, 0, 0), (0, 255, 0, 255)), "TIFF", {}, [WHITE, GREEN]),
        (of("LA", (9, 0), (9, 255)), "PNG", {}, [WHITE, (9, 9, 9)]),
        (of("LA", (9, 0), (9, 255)), "TIFF", {}, [WHITE, (9, 9, 9)]),
        (of("P", 0, 1, palette=TWO), "PNG", {}, [RED, GREEN]),
        (of("P", 0, 1, palette=TWO), "PNG", {"transparency": 0}, [WHITE, GREEN]),
        (of("P", 0, 1, palette=TWO), "PNG", {"transparency": b"\0\xff"}, [WHITE, GREEN]),
        (of("P", 0, 1, palette=TWO), "GIF", {"transparency": 0}, [WHITE, GREEN]),
        (of("RGB", RED, GREEN), "PNG", {"transparency": RED}, [WHITE, GREEN]),
        (of("L", 7, 9), "PNG", {"transparency": 7}, [WHITE, (9, 9, 9)]),
        (of("1", 0, 255), "PNG", {}, [(0, 0, 0), WHITE]),
        (of("1", 0, 255), "PNG", {"transparency": 0}, [WHITE, WHITE]),
        (GREY16, "PNG", {}, [(0, 0, 0), (128, 128, 128), WHITE]),
        (GREY16, "PNG", {"transparency": 0}, [WHITE, (128, 128, 128), WHITE]),
        (GREY16, "TIFF", {}, [(0, 0, 0), (128, 128, 128), WHITE]),
        (of("CMYK", (0, 255, 255, 0)), "TIFF", {}, [RED]),
        (of("RGB", RED), "BMP", {}, [RED]),
        (of("RGB", RED), "PNG", {"icc_profile": b"no profile"}, [RED]),
    ],
)
def test_an_image_is_read_as_it_is_shown(image, kind, options, shown, tmp_path):
    image.save(tmp_path / "image", kind, **options)
    assert pixels(read_image(tmp_path / "image")) == shown


@pytest.mark.parametrize(
    ("data", "second"),
    [
        (png(2, 0, b"\x60", struct.pack(">H", 1)), 170),  # grey values 1, 2 of 3
        (png(4, 0, b"\x5a", struct.pack(">H", 5)), 170),  # 5, 10 of 15
        (png(16, 0, struct.pack(">2H", 7, 0xAAAA), struct.pack(">H", 7)), 170),
        (
            png(16, 2, struct.pack(">6H", 300, 9, 9, *[0xAAAA] * 3), struct.pack(">3H", 300, 9, 9)),
            170,
        ),
    ],
    ids=["2 bits", "4 bits", "16 bits", "16 bits RGB"],
)
def test_the_transparent_colour_of_every_depth(data, second, tmp_path):
    (tmp_path / "image.png").write_bytes(data)
    assert pixels(read_image(tmp_path / "image.png")) == [WHITE, (second,) * 3]


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "YCbCr", "HSV", "LAB", "RGBX"])
def test_modes_that_no_file_here_has(mode):
    between = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    (shown,) = pixels(as_shown(of("RGB", WHITE).convert(between).convert(mode)))
    assert min(shown) >= 253
    if mode in ("RGBa", "La"):
        assert pixels(as_shown(Image.new(mode, (1, 1), 0))) == [WHITE]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused_by_name(mode, tmp_path):
    Image.new(mode, (2, 2)).save(tmp_path / "depth.tif")
    for use in (check_image, read_image):
        with pytest.raises(InputError, match=rf"depth.tif .*32-bit numbers \(mode {mode}\)"):
            use(tmp_path / "depth.tif")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(kind, tmp_path):
    more = [Image.new("RGB", (4, 4), GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.new("RGB", (4, 4), RED)
    image.save(tmp_path / "image", kind, save_all=True, append_images=more, **options)
    assert pixels(read_image(tmp_path / "image")) == [RED] * 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_upright(kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to view it
    image = Image.new("RGB", (32, 16))
    image.paste("white", (0, 0, 16, 16))
    image.save(tmp_path / "image", kind, exif=exif.tobytes())
    shown = read_image(tmp_path / "image")
    assert shown.size == (16, 32)
    assert shown.getpixel((8, 8)) > (200,) * 3 > shown.getpixel((8, 24))


@pytest.mark.parametrize(
    "exif", [b"", b"garbage", b"II*\0\x08\0\0\0\x05\0\x12\x01", b"MM\0*\xff\xff\xff\xff"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_parsed_is_ignored(kind, exif, tmp_path, recwarn):
    Image.new("RGB", (4, 2), WHITE).save(tmp_path / "image", kind, exif=b"Exif\0\0" + exif)
    assert pixels(read_image(tmp_path / "image")) == [WHITE] * 4
    assert not recwarn.list


def test_colours_are_those_of_the_profile(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = of("RGB", (100, 100, 100))
    grey.save(tmp_path / "same.png", icc_profile=srgb)
    assert pixels(read_image(tmp_path / "same.png")) == [(100, 100, 100)]
    grey.save(tmp_path / "other.png", icc_profile=lab)  # does not fit RGB
    assert pixels(read_image(tmp_path / "other.png")) == [(100, 100, 100)]


@pytest.mark.parametrize("cut", [10, 60, -200])
def test_damage_names_the_file(cut, tmp_path):
    file = tmp_path / "image.png"
    Image.effect_noise((32, 32), 50).save(file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"image\.png cannot be read as an image: .*Repair it"):
        read_image(file)


@pytest.mark.parametrize(
    "data",
    ["a\nb", "\ufeffa\r\nb", "a\rb"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_text_of_other_systems(data, encoding, tmp_path):
    (tmp_path / "text").write_bytes(
        data.removeprefix("\ufeff" * (encoding == "utf-16")).encode(encoding)
    )
    assert read_text(tmp_path / "text") == "a\nb"


def test_text_keeps_its_rare_separators(tmp_path):
    (tmp_path / "text").write_text("a\u2028b\u0085c\x0bd")
    assert read_text(tmp_path / "text") == "a\u2028b\u0085c\x0bd"


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "text").write_bytes(b"a\ncaf\xe9")
    with pytest.raises(InputError, match=r"the list .*text: line 2 is not UTF-8 text\. Save it"):
        read_text(tmp_path / "text", "the list ")
    (tmp_path / "text").write_bytes("a\ncat".encode("utf-16-be"))  # with no mark
    with pytest.raises(InputError, match=r"the list .*text: line 1 has a NUL byte, .*UTF-8\.$"):
        read_text(tmp_path / "text", "the list ")
    with pytest.raises(InputError, match=r"none: No such file"):
        read_text(tmp_path / "none")


def test_unicode():
    assert is_unicode("café 猫")
    assert not is_unicode("caf\udce9")


def test_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert at_home("~/x") == "/home/someone/x"
    assert at_home(Path("~/x")) == Path("/home/someone/x")
    assert at_home("x/~") == "x/~"
    assert at_home("~no-such-user/x") == "~no-such-user/x"


def test_the_folder_of_what_is_kept_between_runs(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DPOK_CACHE", raising=False)
    assert cache_folder() == Path("/home/me/.cache/dpok")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_folder() == Path("/fast/dpok")
    monkeypatch.setenv("DPOK_CACHE", "~/mine")
    assert cache_folder() == Path("/home/me/mine")
    monkeypatch.setenv("DPOK_CACHE", "here")
    assert cache_folder() == Path.cwd() / "here"
