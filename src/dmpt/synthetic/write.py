"""``dmpt synth``: a world written to disk in the layout of a benchmark, with captions and a contact sheet."""

import csv
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from io import BytesIO, StringIO
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically, write_text
from dmpt.base.processes import spread
from dmpt.base.terminal import track
from dmpt.data.layouts.datasets import PERSON, VEHICLE
from dmpt.synthetic.canvas import SPECTRA, Bytes
from dmpt.synthetic.setup import PLAIN, Setup
from dmpt.synthetic.world import World

Kind = Literal["person", "vehicle"]
# Folder of each spectrum in the layouts of RGBNT201 (persons) and MSVR310 (vehicles).
_FOLDERS = {"person": PERSON, "vehicle": VEHICLE}
_SCENES = 30  # of vehicles; MSVR310 has as many
_LEAST, _MOST = 16, 4096  # pixels of a picture's side


class _Take(NamedTuple):
    """One sample to write."""

    pid: int
    camera: int  # from 1
    number: int  # which of the camera's pictures of it
    scene: int | None  # hour and weather that pictures share, MSVR310's; None for persons
    files: tuple[dict[str, str], ...]  # of each spectrum, relative to the folder; a query picture lies in two folders


def write_world(
    root: Path,
    *,
    object: Kind = "person",
    train_ids: int,
    test_ids: int,
    images: int,
    cameras: int = 4,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    setup: Setup = PLAIN,
    workers: int | None = None,
) -> None:
    """Write a world; the same arguments write the same bytes, whatever the number of workers.

    Args:
        root: folder to make; an empty one is replaced.
        object: persons in the layout of RGBNT201, or vehicles in that of MSVR310.
        train_ids: identities 1 ... ``train_ids``.
        test_ids: identities after them, numbered on.
        images: samples per identity, dealt to the cameras in turn.
        cameras: number of cameras; at most 8 for vehicles, whose file names have one digit for it.
        seed: of everything.
        size: height and width; None = 128x64 for persons, 64x128 for vehicles.
        setup: what each spectrum knows, and what cameras spoil.
        workers: processes; None = all cores.

    Raises:
        UserError: ``root`` is in use or cannot be written, or a number is out of range.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is in use; remove it or choose another folder")
    limits = {"ids": (train_ids, 999_999), "cameras": (cameras, 8), "images": (images, 8 * 99)}
    for name, (value, most) in limits.items():
        if not 1 <= value <= most:
            raise UserError(f"{name} is {value}; it must lie between 1 and {most}")
    for name in ("dark_cameras", "drifting_cameras"):
        if getattr(setup, name) > cameras:
            raise UserError(f"{name} is {getattr(setup, name)}; there are {cameras} cameras")
    if size is not None and not all(_LEAST <= side <= _MOST for side in size):
        raise UserError(f"size is {list(size)}; height and width must lie between {_LEAST} and {_MOST} pixels")
    if object == "vehicle" and train_ids + test_ids > 9999:
        raise UserError("the vehicles' layout has four digits for an identity; at most 9999 fit in all")
    takes = list(plan(object, train_ids, test_ids, images, cameras, seed))
    world = World(object, seed, cameras, size, setup)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        if root.is_dir():
            root.rmdir()  # to be put in its place; what cannot be, as the current folder or a link, is said right now
        # Renamed when it is whole: half a world would look like a smaller one.
        with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
            fresh = Path(temporary) / "world"
            for folder in sorted({Path(f).parent for take in takes for files in take.files for f in files.values()}):
                (fresh / folder).mkdir(parents=True)
            shoot = partial(_write_chunk, fresh, world)
            chunks = [takes[i : i + 32] for i in range(0, len(takes), 32)]
            drawn = chain.from_iterable(spread(shoot, chunks, workers or os.cpu_count() or 1))
            for _ in track(drawn, f"drawing {object}s", len(takes)):
                pass
            _write_captions(fresh, world, takes)
            write_atomically(fresh / "contact_sheet.png", partial(_save_png, _contact_sheet(world)))
            fresh.rename(root)
    except OSError as error:
        raise UserError(
            f"cannot write {root}: {error.strerror or error}; give a folder that is not there yet, free space, or "
            "check rights"
        ) from error


def plan(object: Kind, train_ids: int, test_ids: int, images: int, cameras: int, seed: int) -> Iterator[_Take]:
    """List the samples of a world and their files."""
    draw = np.random.default_rng([seed, 10**6])
    for pid in range(1, train_ids + test_ids + 1):
        training = pid <= train_ids
        for index in range(images):
            camera, number = index % cameras + 1, index // cameras
            if object == "person":
                split = f"train_{train_ids}" if training else "test"
                name = f"{pid:06d}_cam{camera}_0_{index:02d}.jpg"
                folders, scene = [split], None
            else:
                # Each identity is met in a few of the scenes; half of the test pictures are queries too.
                scene = int((pid * 7 + index % 4 * 11 + draw.integers(2)) % _SCENES)
                name = f"{pid:04d}_s{scene:03d}_v{camera - 1}_{index:03d}.jpg"
                splits = ["bounding_box_train"] if training else ["bounding_box_test"]
                splits += [] if training or draw.random() < 0.5 else ["query3"]
                folders = [f"{split}/{pid:04d}" for split in splits]
            files = tuple({m: f"{folder}/{f}/{name}" for m, f in _FOLDERS[object].items()} for folder in folders)
            yield _Take(pid, camera, number, scene, files)


def _write_chunk(root: Path, world: World, takes: list[_Take]) -> list[_Take]:
    for take in takes:
        shot = world.shoot(take.pid, take.camera, take.number, take.scene)
        draw = np.random.default_rng([world.seed, take.pid, take.camera, take.number, *world.setup.salt])
        contents = [jpeg(pixels, quality, draw) for pixels, quality in zip(shot[:3], shot.quality, strict=True)]
        for files in take.files:
            for content, file in zip(contents, files.values(), strict=True):
                (root / file).write_bytes(content)
    return takes


def jpeg(pixels: Bytes, quality: int, draw: np.random.Generator) -> bytes:
    """A JPEG file of a size drawn at random: a comment fills it up, so that its size tells nothing of its content."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    content = buffer.getvalue()
    least = 1024 + pixels.shape[0] * pixels.shape[1]  # bytes; more than any content seen here
    room = int(draw.integers(least, 2 * least)) - len(content) - 4
    segments = b""
    while room >= 0:
        part = min(room, 65533)
        segments += b"\xff\xfe" + (part + 2).to_bytes(2, "big") + bytes(part)
        room -= part + 4
    return content[:2] + segments + content[2:]


def _write_captions(root: Path, world: World, takes: list[_Take]) -> None:
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["pid", *SPECTRA])
    for pid in sorted({take.pid for take in takes}):
        writer.writerow([pid, *(world.caption(pid, modality) for modality in SPECTRA)])
    write_text(root / "captions.csv", table.getvalue())


def _contact_sheet(world: World, subjects: int = 6, shots: int = 4) -> Bytes:
    """Some subjects, a row each: their pictures by several cameras, in three spectra; ``(H, W, 3)``."""
    rows = []
    for pid in range(1, subjects + 1):
        cells = []
        for index in range(shots):
            shot = world.shoot(pid, index % len(world.cameras) + 1, index // len(world.cameras))
            for pixels in shot[:3]:
                grey = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
                cells.append(np.pad(grey, ((1, 1), (1, 1), (0, 0)), constant_values=255))
            cells[-1] = np.pad(cells[-1], ((0, 0), (0, 6), (0, 0)), constant_values=255)
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _save_png(pixels: Bytes, path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG")
