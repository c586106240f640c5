"""Captioned pictures for the tiny CLIP, from worlds that no demo and no test uses, rendered once and kept."""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import dmpt
from dmpt.base.files import write_atomically, write_text
from dmpt.base.processes import spread
from dmpt.base.terminal import track
from dmpt.synthetic.world import World

Thing = Literal["person", "vehicle"]
FIRST_SEED = 1_000_000
"""Worlds of this seed and above belong to the tiny CLIP; demos and tests stay below."""
VEHICLES_FROM = 1_100_000
HELD_OUT: dict[Thing, int] = {"person": 1_500_000, "vehicle": 1_600_000}
"""First seed of the vehicles' training worlds, and the seeds of the worlds that training never sees."""
MODALITIES = ("rgb", "nir", "tir")
CAMERAS = 4
SIZE = (128, 64)
"""Height and width of every picture; wide ones are resized to it, as the package's transforms do."""
_INFRARED_EVERY = 33  # one shot in 33 also gives its NIR picture, another its TIR picture: under 6 % of all
_DRAWN: dict[Thing, tuple[int, int]] = {"person": SIZE, "vehicle": (SIZE[1], SIZE[0])}

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Item:
    """One picture's words.

    Attributes:
        object: ``person`` or ``vehicle``.
        modality: ``rgb``, ``nir`` or ``tir``.
        caption: what the spectrum shows.
        pid: identity within its world.
        camera: which camera saw it.
    """

    object: str
    modality: str
    caption: str
    pid: int
    camera: int


@dataclass(frozen=True)
class WorldPlan:
    """What is taken of one training world.

    Attributes:
        object: ``person`` or ``vehicle``.
        seed: of the world.
        pictures: RGB pictures, two or three of an identity.
    """

    object: Thing
    seed: int
    pictures: int


def plan(pictures: int, person_worlds: int, vehicle_worlds: int) -> list[WorldPlan]:
    """The training worlds, with ``pictures`` RGB pictures dealt to them evenly."""
    worlds: list[tuple[Thing, int]] = [("person", FIRST_SEED + index) for index in range(person_worlds)]
    worlds += [("vehicle", VEHICLES_FROM + index) for index in range(vehicle_worlds)]
    share, more = divmod(pictures, len(worlds))
    return [WorldPlan(thing, seed, share + (index < more)) for index, (thing, seed) in enumerate(worlds)]


class Captioned:
    """All rendered pictures, memory-mapped, and their words.

    Args:
        shards: picture files, each with its items.
    """

    def __init__(self, shards: list[tuple[Path, list[Item]]]) -> None:
        self.arrays = [np.load(path, mmap_mode="r") for path, _ in shards]
        self.items = [item for _, items in shards for item in items]
        self._place = [(shard, row) for shard, (_, items) in enumerate(shards) for row in range(len(items))]

    def __len__(self) -> int:
        return len(self.items)

    def picture(self, index: int) -> Pictures:
        """``(H, W, 3)``."""
        shard, row = self._place[index]
        picture: Pictures = self.arrays[shard][row]
        return picture


def captioned(worlds: list[WorldPlan], cache: Path, workers: int) -> Captioned:
    """Render what the cache lacks, one file per world; an interrupted run keeps the finished ones.

    Args:
        worlds: from ``plan``.
        cache: folder; another world code or plan goes into files of other names.
        workers: processes; 0 renders in this one.

    Raises:
        UserError: the cache cannot be written.
    """
    files = [cache / f"{world.object}-{world.seed}-{_key(world)}.npy" for world in worlds]
    missing = [pair for pair in zip(worlds, files, strict=True) if not pair[1].exists()]
    for _ in track(spread(_render, missing, max(1, workers)), "rendering", len(missing)):
        pass
    return Captioned([(file, _read_items(file)) for file in files])


def shoot(object: Thing, seed: int, ids: int, per_camera: int) -> tuple[dict[str, Pictures], list[Item]]:
    """Samples of a held-out world: every identity by every camera.

    Returns:
        Pictures of each modality ``(N, H, W, 3)``, and the RGB items.
    """
    world = World(object, seed, cameras=CAMERAS, size=_DRAWN[object])
    views = [(pid, camera, n) for pid in range(ids) for camera in range(1, CAMERAS + 1) for n in range(per_camera)]
    shots = [world.shoot(*view) for view in views]
    pictures = {m: np.stack([_picture(shot, m) for shot in shots]) for m in MODALITIES}
    return pictures, [Item(object, "rgb", world.caption(pid, "rgb"), pid, camera) for pid, camera, _ in views]


def captions(object: Thing, seed: int, ids: int, modality: str) -> list[str]:
    """Captions of the identities of a world."""
    world = World(object, seed, cameras=CAMERAS, size=_DRAWN[object])
    return [world.caption(pid, modality) for pid in range(ids)]


def _render(task: tuple[WorldPlan, Path]) -> None:
    """Write one world's pictures, and before them its items, so that pictures never stand alone."""
    plan, file = task
    world = World(plan.object, plan.seed, cameras=CAMERAS, size=_DRAWN[plan.object])
    pictures, items = [], []
    for index in range(plan.pictures):
        pid = index * 2 // 5  # three pictures of one identity, two of the next
        camera = int(np.random.default_rng([plan.seed, index]).integers(CAMERAS)) + 1
        shot = world.shoot(pid, camera, index)
        modalities = ["rgb"]
        modalities += ["nir"] if index % _INFRARED_EVERY == 0 else []
        modalities += ["tir"] if index % _INFRARED_EVERY == _INFRARED_EVERY // 2 else []
        for modality in modalities:
            pictures.append(_picture(shot, modality))
            items.append(Item(plan.object, modality, world.caption(pid, modality), pid, camera))
    write_text(file.with_suffix(".json"), json.dumps([vars(item) for item in items]))
    write_atomically(file, partial(_save, pictures))


def _save(pictures: list[Pictures], temporary: Path) -> None:
    with temporary.open("wb") as file:
        np.save(file, np.stack(pictures))


def _read_items(file: Path) -> list[Item]:
    return [Item(**item) for item in json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))]


def _picture(shot: Any, modality: str) -> Pictures:
    """As a data set's reader would see it: through JPEG, three channels, of the tower's size."""
    data = io.BytesIO()
    quality = shot.quality[MODALITIES.index(modality)]
    Image.fromarray(getattr(shot, modality)).save(data, "jpeg", quality=quality)
    image = Image.open(data).convert("RGB")
    if image.size != SIZE[::-1]:
        image = image.resize(SIZE[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image)


def _key(world: WorldPlan) -> str:
    """Changes with all that changes a world's pictures: the plan, this file, and the code that draws."""
    digest = hashlib.sha256(repr(world).encode())
    for source in [Path(__file__), *sorted((Path(dmpt.__file__).parent / "synthetic").glob("*.py"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
