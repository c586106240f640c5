"""Metadata lose no picture: odd, broken and huge ones beside whole pixels; the rotation, wherever it can be read."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from dmpt.base.errors import UserError
from dmpt.data.images import read_image
from dmpt.data.metadata import exif_orientation, strip

# Pillow warns of what it passes over; the command line is silent about it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
ORIENTATION, LATE = 274, 400  # a tag and an offset behind the end of a short block
PIXELS = np.random.default_rng(0).integers(0, 255, (24, 16, 3), np.uint8)
Entry = tuple[int, int, int, bytes]  # tag, kind, count, value or offset
TURN: Entry = (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))


def block(*entries: Entry, order: str = "<", count: int | None = None) -> bytes:
    """An EXIF block, which is a small TIFF."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}LH", 8, count or len(entries))
    return head + b"".join(struct.pack(f"{order}HHL4s", *entry) for entry in entries) + bytes(4)


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    """``PIXELS`` behind the segments (marker, content)."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", quality=95)
    added = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return buffer.getvalue()[:2] + added + buffer.getvalue()[2:]


def exif(body: bytes) -> bytes:
    return jpeg((0xE1, b"Exif\0\0" + body))


def png(*chunks: tuple[bytes, bytes], behind: bool = False, crc: int = 0) -> bytes:
    """``PIXELS`` with chunks before or behind them; their checksums are wrong by ``crc``."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    whole = buffer.getvalue()
    at = len(whole) - 12 if behind else 33
    added = b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body) ^ crc)
        for kind, body in chunks
    )
    return whole[:at] + added + whole[at:]


def tiff(*odd: Entry) -> bytes:
    """``PIXELS``, uncompressed, with a rotation and odd tags among the others."""
    entries = [
        (256, 3, 1, struct.pack("<HH", 16, 0)),
        (257, 3, 1, struct.pack("<HH", 24, 0)),
        (258, 3, 3, struct.pack("<L", 300)),
        (259, 3, 1, struct.pack("<HH", 1, 0)),
        (262, 3, 1, struct.pack("<HH", 2, 0)),
        (273, 4, 1, struct.pack("<L", 306)),
        TURN,
        (277, 3, 1, struct.pack("<HH", 3, 0)),
        (279, 4, 1, struct.pack("<L", PIXELS.nbytes)),
        *odd,
    ]
    return block(*sorted(entries)).ljust(300, b"\0") + struct.pack("<3H", 8, 8, 8) + PIXELS.tobytes()


def zipped(length: int) -> bytes:
    """So many zeros."""
    squeeze = zlib.compressobj()
    return b"".join([*(squeeze.compress(bytes(2**20)) for _ in range(length >> 20)), squeeze.flush()])


COMMENT = (b"zTXt", b"Comment\0\0" + zipped(2**21))
TURNED_PNG = (b"eXIf", block(TURN))
XMP = b'<x tiff:Orientation="6"/>'

TURNED = {
    "resolution is text": lambda: exif(block(TURN, (282, 2, 3, b"72\0\0"), (283, 2, 3, b"72\0\0"))),
    "resolution is empty text": lambda: exif(block(TURN, (282, 2, 1, bytes(4)), (296, 3, 1, b"\2\0\0\0"))),
    "text before it lies behind the end": lambda: exif(block((271, 2, 40, struct.pack("<L", LATE)), TURN)),
    "cut behind it": lambda: exif(block((271, 2, 2, b"x\0\0\0"), TURN, count=40)),
    "kinds are wrong": lambda: exif(
        block(
            (270, 12, 1, b"\1\0\0\0"), (271, 99, 2, b"xx\0\0"), (ORIENTATION, 4, 1, b"\6\0\0\0"), (306, 5, 1, bytes(4))
        )
    ),
    "big-endian": lambda: exif(block((271, 13, 7, bytes(4)), (ORIENTATION, 3, 1, b"\0\6\0\0"), order=">")),
    "huge": lambda: exif(block(TURN, count=65535) + bytes(60_000)),
    "in two segments": lambda: jpeg((0xE1, b"Exif\0\0" + block(TURN)[:20]), (0xE1, b"Exif\0\0" + block(TURN)[20:])),
    "XMP beside a short Photoshop block": lambda: jpeg(
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), (0xED, b"Photoshop 3.0\x008BIM\4")
    ),
    "short JFIF": lambda: jpeg((0xE0, b"JFIF\0"), (0xE1, b"Exif\0\0" + block(TURN))),
    "multi-picture index of one that claims two": lambda: jpeg(
        (0xE2, b"MPF\0" + block((0xB001, 4, 2, b"\2\0\0\0\2\0\0\0"))), (0xE1, b"Exif\0\0" + block(TURN))
    ),
    "large comment": lambda: png(COMMENT, TURNED_PNG),
    "large comment behind": lambda: png(TURNED_PNG, COMMENT, behind=True),
    "large international comment": lambda: png(TURNED_PNG, (b"iTXt", b"Comment\0\1\0\0\0" + zipped(2**21))),
    "many large comments": lambda: png(TURNED_PNG, *[(b"zTXt", b"C\0\0" + zipped(2**20))] * 66),
    "comment packed in an unknown way": lambda: png(TURNED_PNG, (b"zTXt", b"Comment\0\7...")),
    "large colour profile": lambda: png(TURNED_PNG, (b"iCCP", b"p\0\0" + zipped(2**21))),
    "colour profile without contents": lambda: png(TURNED_PNG, (b"iCCP", b"p\0")),
    "short chunks": lambda: png(TURNED_PNG, (b"gAMA", b"x"), (b"pHYs", b"x"), (b"cHRM", b"x"), (b"sRGB", b"")),
    "checksums of what is no pixel": lambda: png(TURNED_PNG, (b"tEXt", b"a\0b"), crc=1),
    "XMP beside a large comment": lambda: png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), COMMENT),
    "animation without its numbers": lambda: png(TURNED_PNG, (b"acTL", b"x"), (b"fcTL", b"x")),
    "tiff: resolution is text": lambda: tiff((282, 2, 3, b"72\0\0"), (296, 3, 1, b"\3\0\0\0")),
    "tiff: text lies behind the end": lambda: tiff((270, 2, 400, struct.pack("<L", 9000))),
    "tiff: camera's tags lie behind": lambda: tiff((34665, 4, 1, b"\xff\xff\xff\x7f"), (34853, 2, 2, b"x\0\0\0")),
}


def pixels(path: Path, data: bytes) -> np.ndarray:
    path.write_bytes(data)
    return read_image(path, (0.0, 65535.0)).transpose(1, 2, 0)


def plain(data: bytes) -> np.ndarray:
    """What Pillow sees in a file of ours without metadata, upright."""
    kind = jpeg() if data.startswith(b"\xff\xd8") else png()
    return np.asarray(Image.open(io.BytesIO(kind)))


@pytest.mark.parametrize("name", TURNED)
def test_pixels_and_rotation_survive_odd_metadata(tmp_path: Path, name: str) -> None:
    data = TURNED[name]()
    np.testing.assert_array_equal(pixels(tmp_path / "x", data), np.rot90(plain(data), -1))


@pytest.mark.parametrize(
    "data",
    [
        exif(b"no block at all"),
        exif(b""),
        exif(b"II*\0"),
        exif(block((ORIENTATION, 2, 2, b"6\0\0\0"))),
        png((b"eXIf", b"")),
    ],
    ids=["noise", "nothing", "head", "text", "empty chunk"],
)
def test_no_rotation_where_none_can_be_read(tmp_path: Path, data: bytes) -> None:
    np.testing.assert_array_equal(pixels(tmp_path / "x", data), plain(data))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "webp", "png", "tif"])
def test_all_eight_rotations_are_pillows(tmp_path: Path, turn: int, suffix: str) -> None:
    about = Image.Exif()
    about[ORIENTATION] = turn
    Image.fromarray(PIXELS).save(tmp_path / f"x.{suffix}", exif=about)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape == (PIXELS.shape if turn < 5 else (16, 24, 3))
    np.testing.assert_array_equal(pixels(tmp_path / "y", (tmp_path / f"x.{suffix}").read_bytes()), expected)


def test_of_a_multi_picture_file_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(PIXELS), Image.new("RGB", (8, 8))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert b"MPF\0" in (tmp_path / "x.jpg").read_bytes()
    np.testing.assert_array_equal(pixels(tmp_path / "y", (tmp_path / "x.jpg").read_bytes()), plain(jpeg()))


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("name", ["jpeg", "png", "tiff"])
def test_whatever_the_metadata_are_the_picture_is_read(tmp_path: Path, name: str, start: int) -> None:
    odd = block(
        (271, 2, 9, struct.pack("<L", 60)), TURN, (282, 5, 1, struct.pack("<L", 50)), (34665, 4, 1, b"\x08\0\0\0")
    )
    rng = np.random.default_rng(start)
    for _ in range(100):
        noise = bytearray(odd + bytes(30))
        for at in rng.integers(0, len(noise), rng.integers(1, 12)):
            noise[at] = rng.integers(256)
        body = bytes(noise)
        if name == "jpeg":
            marker = int(rng.choice([0xE1, 0xE1, 0xE2, 0xED]))
            title = {0xE1: b"Exif\0\0", 0xE2: b"MPF\0", 0xED: b"Photoshop 3.0\x008BIM"}[marker]
            data = jpeg((marker, title + body))
        elif name == "png":
            kind = rng.choice([b"eXIf", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"pHYs", b"fcTL", b"acTL"])
            data = png((bytes(kind), body), crc=int(rng.integers(2)), behind=bool(rng.integers(2)))
        else:
            tag, kind, count = (
                rng.choice([270, 282, 296, 305, 700, 33723, 34377, 34665, 34675, 34853]),
                *rng.integers(0, 18, 2),
            )
            data = tiff((int(tag), int(kind), int(count), body[:4]))
        found = pixels(tmp_path / "x", data)
        assert sorted(found.shape) == [3, 16, 24]
        np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(plain(data), axis=None))


@pytest.mark.parametrize("cut", [1, 2, 3, 20, 200])
@pytest.mark.parametrize("data", [exif(block(TURN, (282, 2, 3, b"72\0\0"))), jpeg((0xE0, b"JFIF\0"))])
def test_a_jpeg_cut_in_its_last_bytes_stays_damaged(tmp_path: Path, data: bytes, cut: int) -> None:
    with pytest.raises(UserError, match="truncated or damaged"):
        pixels(tmp_path / "x.jpg", data[:-cut])


@pytest.mark.parametrize(
    "data", [png(COMMENT)[:-100], png((b"IDAT", b"x"), COMMENT), tiff()[:-9]], ids=["cut", "zip", "tiff"]
)
def test_damage_beside_odd_metadata_stays_damage(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="damaged"):
        pixels(tmp_path / "x.png", data)


def test_a_bomb_behind_odd_metadata_is_too_large(tmp_path: Path) -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", "0" * 2**21, zip=True)
    Image.new("1", (9_000, 9_000)).save(tmp_path / "x.png", pnginfo=about)
    with pytest.raises(UserError, match="too large"):
        read_image(tmp_path / "x.png", (0.0, 65535.0))


def test_no_comment_is_unpacked_further_than_pillow_would(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png((b"zTXt", b"Comment\0\0" + zipped(2**28))))
    tracemalloc.start()
    try:
        read_image(tmp_path / "x.png", (0.0, 65535.0))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_memory_that_does_not_suffice_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "tobytes", refuse)
    with pytest.raises(UserError, match="does not fit into memory"):
        pixels(tmp_path / "x.png", png())


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "I;16", "RGBA"])
def test_stripping_leaves_pixels_and_colours(mode: str) -> None:
    image = Image.fromarray(PIXELS)
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200) if mode == "I;16" else image.convert(mode)
    for kind in {"CMYK": ["JPEG", "TIFF"], "L": ["JPEG", "PNG", "TIFF"]}.get(mode, ["PNG", "TIFF"]):
        about = Image.Exif()
        about[ORIENTATION], about[271] = 1, "camera " * 20
        for options in [{}] if kind != "TIFF" else [{}, {"compression": "tiff_lzw"}]:
            buffer = io.BytesIO()
            image.save(buffer, kind, exif=about, icc_profile=b"profile" * 50, dpi=(72, 72), **options)
            bare, _ = strip(buffer.getvalue())
            assert bare != buffer.getvalue()
            with Image.open(io.BytesIO(bare)) as found, Image.open(io.BytesIO(buffer.getvalue())) as whole:
                assert found.mode == whole.mode
                np.testing.assert_array_equal(np.asarray(found), np.asarray(whole))
                assert found.getpalette() == whole.getpalette()
                assert "icc_profile" not in found.info
                assert "icc_profile" in whole.info


def test_orientation_of_blocks() -> None:
    assert exif_orientation(b"Exif\0\0Exif\0\0" + block(TURN)) == 6
    assert exif_orientation(block()) is None
    assert exif_orientation(block(TURN)[:17]) is None
