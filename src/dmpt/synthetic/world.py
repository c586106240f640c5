"""A world: its cameras, its subjects, and a shot of one of them. Everything follows from the seed."""

from copy import deepcopy
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from dmpt.synthetic.canvas import SPECTRA, Bytes, Canvas
from dmpt.synthetic.person import Person, make_person
from dmpt.synthetic.scene import Weather, make_camera, make_weather, paint_background, paint_occluder
from dmpt.synthetic.setup import PLAIN, Setup, as_seen
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
        setup: what each spectrum knows, and what cameras spoil.
    """

    def __init__(
        self,
        object: Literal["person", "vehicle"] = "person",
        seed: int = 0,
        cameras: int = 4,
        size: tuple[int, int] | None = None,
        setup: Setup = PLAIN,
    ) -> None:
        self.object, self.seed, self.setup = object, seed, setup
        self.size = size or ((128, 64) if object == "person" else (64, 128))
        self._kind = ("person", "vehicle").index(object)
        of_cameras = seed if setup.camera_seed is None else setup.camera_seed
        for_cameras = [np.random.default_rng([of_cameras, self._kind, _CAMERA, number]) for number in range(cameras)]
        self.cameras = [
            replace(make_camera(draw, number, object == "person"), **setup.spoils(number, cameras))
            for number, draw in enumerate(for_cameras)
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

    def seen(self, pid: int, spectrum: str) -> Person | Vehicle:
        """The subject as a spectrum (``rgb``, ``nir``, ``tir``) shows it: what it does not know is as with everyone."""
        if not self.setup.hides:
            return self.subject(pid)
        look, shape = self.subject(self.setup.twin(pid, spectrum)), self.subject(self.setup.shaped(pid, spectrum))
        return as_seen(spectrum, look, shape, self.subject(0))

    def caption(self, pid: int, modality: str) -> str:
        """What a spectrum (``rgb``, ``nir``, ``tir``) shows of a subject, in words."""
        return self.seen(pid, modality).caption(modality)

    def shoot(self, pid: int, camera: int, number: int, scene: int | None = None) -> Shot:
        """Take one sample: the same for the same arguments, whatever was asked before.

        Args:
            pid: who.
            camera: which camera, from 1.
            number: which of the pictures that this camera takes of this subject.
            scene: hour and weather that pictures share; None = of this picture alone.
        """
        draw = self._draw(_SHOT, pid, camera, number)
        weather = make_weather(draw if scene is None else self._draw(_SCENE, scene), self.setup.hour)
        canvases, draw = self._paint_each(pid, camera, weather, draw)
        view = self.cameras[camera - 1]
        of_rgb, of_nir, of_tir = (int(quality) for quality in draw.integers(55, 93, 3))
        sights = zip((see_rgb, see_nir, see_tir), canvases, strict=True)
        rgb, nir, tir = (see(canvas, view, weather, draw) for see, canvas in sights)
        return Shot(rgb, nir, tir, (of_rgb, of_nir, of_tir))

    def _paint_each(
        self, pid: int, camera: int, weather: Weather, draw: np.random.Generator
    ) -> tuple[list[Canvas], np.random.Generator]:
        """The map of one moment for each spectrum, and what goes on drawing; one map where all show the same."""
        if not self.setup.hides:
            return [self.paint(pid, camera, weather, draw)] * len(SPECTRA), draw
        draws = [deepcopy(draw) for _ in SPECTRA]  # a subject's traits change nothing about what is drawn
        maps = [self.paint(pid, camera, weather, own, s) for s, own in zip(SPECTRA, draws, strict=True)]
        return maps, draws[0]

    def paint(
        self, pid: int, camera: int, weather: Weather, draw: np.random.Generator, spectrum: str = "rgb"
    ) -> Canvas:
        """The map of surfaces of one shot, as a spectrum knows it."""
        view, canvas = self.cameras[camera - 1], Canvas(self.size)
        paint_background(canvas, view, weather, draw)
        subject = self.seen(pid, spectrum)
        if isinstance(subject, Person):
            if draw.random() < 0.15:  # someone else, behind
                side = draw.choice([0.05, 0.95]) * canvas.aspect
                paint_person(canvas, make_person(draw), view, weather, draw, at=(side, draw.uniform(0.85, 0.95)))
            paint_person(canvas, subject, view, weather, draw)
        else:
            paint_vehicle(canvas, subject, view, weather, draw)
        paint_occluder(canvas, weather, draw)
        return canvas
