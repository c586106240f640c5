"""Decoding: golden pixels for every kind of file, and a line the user can act on for every broken one."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import dmpt.data.images as images
from dmpt.base.errors import UserError
from dmpt.data.images import read_image, resize
from dmpt.data.transforms import TestTransform

FULL = (0.0, 65535.0)
RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]], np.uint8)
GREY = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)
DEEP = np.array([[0, 1000, 20000], [30000, 40000, 65535]], np.uint16)


def read(path: Path, value_range: tuple[float, float] = FULL) -> np.ndarray:
    image = read_image(path, value_range)
    assert image.dtype == np.uint8
    assert image.shape[0] == 3
    assert image.flags.c_contiguous
    return image.transpose(1, 2, 0)


def grey(values: object) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "JPG"])  # contents decide: the JPG is a PNG
def test_colour(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RGB).save(path, "PNG" if suffix == "JPG" else None)
    np.testing.assert_array_equal(read(path), RGB)


def test_jpeg_keeps_channel_order(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), (200, 100, 30)).save(tmp_path / "x.jpg", quality=100)
    pixels = read(tmp_path / "x.jpg").astype(int)
    assert pixels.shape == (8, 16, 3)
    assert abs(pixels - [200, 100, 30]).max() <= 2


def test_grey_and_one_bit_are_repeated(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read(tmp_path / "grey.png"), grey(GREY))
    Image.fromarray(GREY > 100).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read(tmp_path / "bit.png"), grey(np.where(GREY > 100, 255, 0)))


def test_palette_becomes_colour(tmp_path: Path) -> None:
    Image.fromarray(RGB).quantize(6).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png"), RGB)


def test_cmyk_becomes_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read(tmp_path / "x.tif"), np.full((8, 8, 3), [255, 0, 0]))


def test_transparency_shows_black_not_the_hidden_colour(tmp_path: Path) -> None:
    alpha = np.array([[255, 0, 255], [0, 255, 128]], np.uint8)
    expected = RGB * (alpha[..., None] > 200) + grey([[0, 0, 0], [0, 0, 0]])
    expected[1, 2] = [35, 40, 45]
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "rgba.png")
    assert abs(read(tmp_path / "rgba.png").astype(int) - expected).max() <= 1
    Image.fromarray(np.dstack([GREY, alpha])).save(tmp_path / "la.png")
    assert abs(read(tmp_path / "la.png").astype(int) - grey([[0, 0, 100], [0, 200, 128]])).max() <= 1
    Image.fromarray(GREY).save(tmp_path / "key.png", transparency=200)
    np.testing.assert_array_equal(read(tmp_path / "key.png"), grey([[0, 50, 100], [150, 0, 255]]))
    palette = Image.fromarray(GREY).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((2, 1)))
    np.testing.assert_array_equal(read(tmp_path / "p.png"), grey([[0, 50, 100], [150, 200, 0]]))


@pytest.mark.parametrize(
    ("array", "name"),
    [
        (DEEP, "i16.png"),
        (DEEP, "i16.tif"),
        (DEEP.astype(">u2"), "i16b.tif"),
        (DEEP.astype(np.int32), "i.tif"),
        (DEEP.astype(np.float32), "f.tif"),
    ],
)
def test_deep_images_are_scaled_by_the_fixed_range(tmp_path: Path, array: np.ndarray, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(array).save(path)
    np.testing.assert_array_equal(read(path), grey([[0, 4, 78], [117, 156, 255]]))  # v / 257, rounded
    np.testing.assert_array_equal(read(path, (1000, 41000)), grey([[0, 0, 121], [185, 249, 255]]))  # clipped


def test_deep_scale_does_not_depend_on_the_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 20000, np.uint16)).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png"), grey([[78, 78], [78, 78]]))


def test_nan_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, np.inf, 0.5]], np.float32)).save(tmp_path / "x.tif")
    np.testing.assert_array_equal(read(tmp_path / "x.tif", (0, 1)), grey([[0, 255, 128]]))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])  # an uncompressed TIFF by its path is garbled by Pillow
@pytest.mark.parametrize("array", [GREY, DEEP, RGB], ids=["8", "16", "colour"])
def test_exif_rotation_is_applied_once(tmp_path: Path, name: str, array: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    Image.fromarray(array).save(tmp_path / "flat.png")
    Image.fromarray(array).save(tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read(tmp_path / name), np.rot90(read(tmp_path / "flat.png"), -1))


def encoded(fmt: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, fmt)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: b"", "empty (0 bytes)"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (lambda: b"no image at all", "no image"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image"),
        (lambda: encoded("JPEG")[:1500], "truncated"),
        (lambda: encoded("PNG")[:1500], "truncated"),
        (lambda: encoded("PNG")[:900] + b"garbage" + encoded("PNG")[907:], "damaged"),
    ],
    ids=["empty", "lfs", "html", "text", "postscript", "cut jpeg", "cut png", "damaged png"],
)
def test_broken_files_are_named_and_described(tmp_path: Path, data: Callable[[], bytes], words: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data())
    with pytest.raises(UserError) as error:
        read_image(path, FULL)
    assert str(error.value).startswith(f"{path} ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}"):
            read_image(path, FULL)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png is a pipe or a device, not a file; remove it"):
        read_image(tmp_path / "x.png", FULL)


@pytest.mark.parametrize("side", [9_000, 20_000])  # the second is above Pillow's own limit too
def test_decompression_bomb_is_refused(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="too large"):
        read_image(tmp_path / "x.png", FULL)


def test_pillow_globals_stay_as_they_are() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert images.Image.MAX_IMAGE_PIXELS == 89_478_485


@pytest.mark.parametrize("size", [(128, 64), (37, 91), (300, 300)])
def test_resizing_without_torch_is_within_a_level_of_what_the_network_sees(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-9, 10, (3, 150, 75)), axis=1).clip(-120, 120) + 128
    pixels = smooth.astype(np.uint8)
    seen = TestTransform(size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))({"rgb": pixels})["rgb"] * 255
    own = resize(pixels, size)
    assert own.shape == (3, *size)
    assert own.dtype == np.uint8
    off = np.abs(own.astype(float) - seen.numpy())
    assert off.max() <= 1.01  # which of two levels a value between them becomes
    assert off.mean() < 0.3
