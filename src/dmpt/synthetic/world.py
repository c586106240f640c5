"""A world: its cameras, its subjects, and a shot of one of them. Everything follows from the seed."""

from typing import Literal, NamedTuple

import numpy as np

from dmpt.synthetic.canvas import Bytes, Canvas
from dmpt.synthetic.person import Person, make_person
from dmpt.synthetic.scene import Weather, make_camera, make_weather, paint_background, paint_occluder
from dmpt.synthetic.spectra import see_nir, see_rgb, see_tir
from dmpt.synthetic.vehicle import Vehicle, make_vehicle, paint_vehicle
from dmpt.synthetic.walk import paint_person

_SUBJECT, _CAMERA, _SHOT, _SCENE = range(4)


class Shot(NamedTuple):
    """One aligned sample of pictures, uint8: visible ``(H, W, 3)``, near-infrared and thermal ``(H, W)``."""

    rgb: Bytes
    nir: Bytes
    tir: Bytes
    quality: tuple[int, int, int]  # of JPEG, for each of the three


class World:
    """Persons or vehicles seen by some cameras.

    Args:
        object: what is seen.
        seed: of everything; two worlds of different seeds share neither subjects nor cameras nor places.
        cameras: how many, numbered from 1.
        size: height and width of the pictures; None = 128x64 for persons, 64x128 for vehicles.
    """

    def __init__(
        self,
        object: Literal["person", "vehicle"] = "person",
        seed: int = 0,
        cameras: int = 4,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.object, self.seed = object, seed
        self.size = size or ((128, 64) if object == "person" else (64, 128))
        self._kind = ("person", "vehicle").index(object)
        self.cameras = [
            make_camera(self._draw(_CAMERA, number), number, object == "person") for number in range(cameras)
        ]
        self._subjects: dict[int, Person | Vehicle] = {}

    def _draw(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self._kind, *what])

    def subject(self, pid: int) -> Person | Vehicle:
        """Who or what has this identity."""
        if pid not in self._subjects:
            draw = self._draw(_SUBJECT, pid)
            self._subjects[pid] = make_person(draw) if self.object == "person" else make_vehicle(draw)
        return self._subjects[pid]

    def caption(self, pid: int, modality: str) -> str:
        """What a spectrum (``rgb``, ``nir``, ``tir``) shows of a subject, in words."""
        return self.subject(pid).caption(modality)

    def shoot(self, pid: int, camera: int, number: int, scene: int | None = None) -> Shot:
        """Take one sample: the same for the same arguments, whatever was asked before.

        Args:
            pid: who.
            camera: which camera, from 1.
            number: which of the pictures that this camera takes of this subject.
            scene: hour and weather that pictures share; None = of this picture alone.
        """
        draw = self._draw(_SHOT, pid, camera, number)
        weather = make_weather(draw if scene is None else self._draw(_SCENE, scene))
        canvas = self.paint(pid, camera, weather, draw)
        view = self.cameras[camera - 1]
        of_rgb, of_nir, of_tir = (int(quality) for quality in draw.integers(55, 93, 3))
        rgb, nir, tir = (see(canvas, view, weather, draw) for see in (see_rgb, see_nir, see_tir))
        return Shot(rgb, nir, tir, (of_rgb, of_nir, of_tir))

    def paint(self, pid: int, camera: int, weather: Weather, draw: np.random.Generator) -> Canvas:
        """The map of surfaces of one shot."""
        view, canvas = self.cameras[camera - 1], Canvas(self.size)
        paint_background(canvas, view, weather, draw)
        subject = self.subject(pid)
        if isinstance(subject, Person):
            if draw.random() < 0.15:  # someone else, behind
                side = draw.choice([0.05, 0.95]) * canvas.aspect
                paint_person(canvas, make_person(draw), view, weather, draw, at=(side, draw.uniform(0.85, 0.95)))
            paint_person(canvas, subject, view, weather, draw)
        else:
            paint_vehicle(canvas, subject, view, weather, draw)
        paint_occluder(canvas, weather, draw)
        return canvas
