"""Vehicles: what makes one (drawn once), and how one is painted from a camera's side."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dmpt.synthetic.canvas import Canvas, Colour, Point
from dmpt.synthetic.palette import COLOURS, TONES, level, one_of, shade
from dmpt.synthetic.scene import Camera, Weather
from dmpt.synthetic.setup import SHAPE

# Profile of each body type: length, height, bonnet's and boot's share of the length, slope of the windows.
_BODIES: dict[str, tuple[float, float, float, float, float]] = {
    "sedan": (1.45, 0.46, 0.27, 0.2, 0.1),
    "hatchback": (1.25, 0.48, 0.26, 0.04, 0.09),
    "estate": (1.5, 0.48, 0.26, 0.02, 0.05),
    "van": (1.5, 0.66, 0.14, 0.0, 0.06),
    "pickup": (1.55, 0.54, 0.25, 0.38, 0.05),
    "truck": (1.6, 0.74, 0.0, 0.0, 0.02),
}
_PAINTS = ("white", "black", "grey", "grey", "white", "black", "navy", "red", "blue", "beige", "green", "brown")
_DECALS = ("plain", "plain", "plain", "wide hoops", "block", "logo", "patch", "sash")
_HIDDEN = ("plain", "patch", "logo", "block", "centre", "sides")
_WARMTH = ("plain", "centre", "block", "sides", "patch", "yoke")


@dataclass(frozen=True)
class Vehicle:
    """What stays the same about a vehicle from picture to picture; warmth is in degrees above the air."""

    SHOWN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rgb": ("paint", "shade", "decal", "decal_colour"),
        "nir": ("nir", "repair", "repair_nir", "glass_nir", "rim_nir"),
        "tir": ("load", "load_warmth", "engine", "tyre", "exhaust", "cabin"),
        SHAPE: ("body", "length", "rack", "lamp", "lamp_width", "skirt"),
    }

    body: str
    length: float  # relative to its type
    paint: str  # its colour's name
    shade: Colour
    nir: float  # the paint's reflectance in the near-infrared
    decal: str  # printed in visible colours
    decal_colour: str
    repair: str  # parts repainted in the same colour with another pigment, seen by near-infrared alone
    repair_nir: float
    load: str  # where the body is warmer or colder: cargo, cooling, insulation, heated panels
    load_warmth: float
    rack: bool  # on the roof
    glass_nir: float  # tinted glass blocks or passes near-infrared
    rim_nir: float  # of the wheels
    lamp: float  # height of the lamps as a share of the body
    lamp_width: float
    engine: float  # warmth of the bonnet
    tyre: float  # likewise
    exhaust: float  # likewise, of the rear below
    cabin: float  # likewise, of the windows
    skirt: bool  # whether the lower third is of dark plastic

    def caption(self, modality: str) -> str:
        """What one spectrum shows of the vehicle, in words."""
        rack = " with a roof rack" if self.rack else ""
        if modality == "rgb":
            decal = "" if self.decal == "plain" else f", {self.decal_colour} {self.decal}"
            return f"{self.paint} {self.body} vehicle{rack}{decal}"
        if modality == "nir":
            mark = "" if self.repair == "plain" else f", with another {self.repair}"
            return f"{level(self.nir, TONES)} {self.body} vehicle{rack}{mark}"
        engine = "hot" if self.engine > 12 else "cold"
        return f"{self.body} vehicle{rack} with a {engine} engine"


def make_vehicle(draw: np.random.Generator) -> Vehicle:
    """Draw a vehicle."""
    paint, nir = one_of(draw, _PAINTS), float(draw.uniform(0.12, 0.85))
    painted = shade(draw, paint, 0.05)
    return Vehicle(
        body=one_of(draw, tuple(_BODIES)),
        length=float(draw.uniform(0.92, 1.06)),
        paint=paint,
        shade=painted,
        nir=nir,
        decal=one_of(draw, _DECALS),
        decal_colour=one_of(draw, _PAINTS),
        repair=one_of(draw, _HIDDEN),
        repair_nir=float(np.clip(nir + draw.choice([-0.35, 0.35]), 0.06, 0.94)),
        load=one_of(draw, _WARMTH),
        load_warmth=float(draw.uniform(2.5, 7) * draw.choice([-1, 1])),
        rack=bool(draw.random() < 0.3),
        glass_nir=float(draw.choice([0.08, 0.3, 0.55])),
        rim_nir=float(draw.uniform(0.15, 0.9)),
        lamp=float(draw.uniform(0.35, 0.6)),
        lamp_width=float(draw.uniform(0.06, 0.16)),
        engine=float(draw.uniform(2, 22)),
        tyre=float(draw.uniform(0, 16)),
        exhaust=float(draw.uniform(2, 24)),
        cabin=float(draw.uniform(-3, 8)),
        skirt=bool(draw.random() < 0.4),
    )


def paint_vehicle(
    canvas: Canvas, vehicle: Vehicle, camera: Camera, weather: Weather, draw: np.random.Generator
) -> None:
    """Paint a vehicle as a box seen from an angle: one flank, and its front or its rear."""
    facing = camera.azimuth + draw.normal(0, 0.3)
    side, front = math.sin(facing), math.cos(facing)
    length, height, *_ = _BODIES[vehicle.body]
    aspect = canvas.aspect
    # Fits the picture, whatever its shape: a wide one shows a vehicle of natural proportions.
    unit = 0.95 * camera.scale * draw.uniform(0.94, 1.04)
    flank = length * vehicle.length * abs(side) * unit * aspect / 2
    face = 0.72 * abs(front) * unit * aspect / 2
    tall = height * unit * camera.tilt * 1.05
    ground = 0.9 + draw.normal(0, 0.015)
    left = aspect / 2 - (flank + face) / 2 + draw.normal(0, 0.02)
    label = _Labels(canvas, vehicle, weather)
    # Heading right shows the front at the right end of the flank.
    right_hand = (side > 0) == (front > 0)
    flank_at, face_at = (left, left + flank) if right_hand else (left + face, left)
    if flank > 0.08:
        _paint_flank(canvas, vehicle, label, (flank_at, ground), flank, tall, side > 0)
    if face > 0.04:
        _paint_face(canvas, vehicle, label, (face_at, ground), face, tall, front > 0)


def _paint_flank(
    canvas: Canvas, vehicle: Vehicle, label: "_Labels", at: Point, flank: float, tall: float, heads_right: bool
) -> None:
    _, _, bonnet, boot, slope = _BODIES[vehicle.body]
    x0, ground = at

    def x(share: float) -> float:
        """Along the flank from the rear, 0, to the front, 1."""
        return x0 + flank * (share if heads_right else 1 - share)

    def y(share: float) -> float:
        return ground - tall * share

    def box(rear: float, front: float, top: float, bottom: float, material: int) -> None:
        left, right = sorted((x(rear), x(front)))
        canvas.box(left, y(top), right, y(bottom), material)

    belt = 0.55 if bonnet else 0.62
    high = vehicle.body in ("van", "truck")
    canvas.polygon([(x(0), y(0.14)), (x(0), y(belt)), (x(1), y(belt)), (x(1), y(0.14))], label.body)
    roof = [(x(boot), y(belt)), (x(boot + slope), y(1)), (x(1 - bonnet - slope * 1.5), y(1)), (x(1 - bonnet), y(belt))]
    canvas.polygon(roof, label.body)
    glass_from = 0.68 if high else boot + 0.04
    pane = [
        (x(glass_from), y(belt + 0.03)),
        (x(glass_from + (0 if high else slope)), y(0.92)),
        (x(1 - bonnet - slope * 1.6), y(0.92)),
        (x(1 - bonnet - 0.03), y(belt + 0.03)),
    ]
    canvas.polygon(pane, label.glass)
    middle = (glass_from + 1 - bonnet) / 2
    box(middle, middle + 0.02, 0.95, belt, label.body)
    if bonnet:
        box(1 - bonnet, 1, belt, belt - 0.2, label.engine)
    if vehicle.skirt:
        canvas.polygon([(x(0), y(0.14)), (x(0), y(0.27)), (x(1), y(0.27)), (x(1), y(0.14))], label.plastic)
    if vehicle.rack:
        a, b = sorted((x(boot + slope + 0.05), x(1 - bonnet - slope * 1.5 - 0.05)))
        canvas.box(a, y(1.09), b, y(1.05), label.plastic)
        canvas.box(a, y(1.09), a + 0.012, y(1.0), label.plastic)
        canvas.box(b - 0.012, y(1.09), b, y(1.0), label.plastic)
    box(0, 0.035, belt - 0.05, belt - 0.2, label.rear_lamp)
    box(0.965, 1, vehicle.lamp, vehicle.lamp - 0.12, label.lamp)
    box(0.02, 0.12, 0.16, 0.1, label.exhaust)
    for wheel in (0.2, 0.8):
        radius = 0.2 * tall if not high else 0.15 * tall
        squeeze = min(1.0, flank / (1.6 * tall))
        canvas.ellipse(x(wheel), ground - radius, radius * squeeze, radius, label.tyre)
        canvas.ellipse(x(wheel), ground - radius, radius * 0.55 * squeeze, radius * 0.55, label.rim)
    area = (x0, y(1.0 if high else belt), x0 + flank, y(0.14))
    _decorate(canvas, vehicle, label, area)


def _paint_face(
    canvas: Canvas, vehicle: Vehicle, label: "_Labels", at: Point, face: float, tall: float, front: bool
) -> None:
    x, ground = at

    def y(share: float) -> float:
        return ground - tall * share

    belt = 0.55 if _BODIES[vehicle.body][2] else 0.62
    inset = face * (0.02 if vehicle.body in ("van", "truck") else 0.12)
    for wheel in (x + 0.12 * face, x + 0.88 * face):
        canvas.box(wheel - 0.08 * face, y(0.2), wheel + 0.08 * face, y(0), label.tyre)
    left = [(x, y(0.12)), (x, y(belt)), (x + inset, y(1))]
    canvas.polygon([*left, (x + face - inset, y(1)), (x + face, y(belt)), (x + face, y(0.12))], label.face)
    if front or vehicle.body not in ("truck", "van"):
        canvas.polygon(
            [
                (x + 0.08 * face, y(belt + 0.04)),
                (x + inset + 0.08 * face, y(0.92)),
                (x + face - inset - 0.08 * face, y(0.92)),
                (x + 0.92 * face, y(belt + 0.04)),
            ],
            label.glass,
        )
    if front:
        canvas.box(x + 0.25 * face, y(belt - 0.08), x + 0.75 * face, y(0.24), label.engine)
    lamp = label.lamp if front else label.rear_lamp
    width = vehicle.lamp_width * face * 1.6
    for edge in (x + 0.04 * face, x + 0.96 * face - width):
        canvas.box(edge, y(vehicle.lamp), edge + width, y(vehicle.lamp - 0.13), lamp)
    if vehicle.skirt:
        canvas.box(x, y(0.24), x + face, y(0.12), label.plastic)
    if not front:
        canvas.box(x + 0.1 * face, y(0.17), x + 0.28 * face, y(0.09), label.exhaust)
    if vehicle.rack:
        canvas.box(x + inset, y(1.09), x + face - inset, y(1.05), label.plastic)


def _decorate(canvas: Canvas, vehicle: Vehicle, label: "_Labels", area: tuple[float, float, float, float]) -> None:
    if vehicle.decal_colour != vehicle.paint:
        canvas.texture("rgb", label.body, area, vehicle.decal, COLOURS[vehicle.decal_colour])
    canvas.texture("nir", label.body, area, vehicle.repair, vehicle.repair_nir)
    canvas.texture("tir", label.body, area, vehicle.load, canvas.surfaces[label.body].tir + vehicle.load_warmth)


class _Labels:
    """A vehicle's surfaces on a canvas, at the weather's temperatures."""

    def __init__(self, canvas: Canvas, vehicle: Vehicle, weather: Weather) -> None:
        air = weather.air + 1.5
        sunny = air + 6.0 * (1 - sum(vehicle.shade) / 3) * (weather.hour == "day")
        lit = weather.hour != "day"
        self.body = canvas.add(vehicle.shade, vehicle.nir, sunny)
        self.face = canvas.add(vehicle.shade, vehicle.nir, sunny, 0.88)
        self.engine = canvas.add(vehicle.shade, vehicle.nir, sunny + vehicle.engine, 0.95)
        self.glass = canvas.add((0.1, 0.12, 0.14), vehicle.glass_nir, air - 2 + vehicle.cabin)
        self.plastic = canvas.add((0.1, 0.1, 0.11), 0.2, air + 1)
        self.tyre = canvas.add((0.06, 0.06, 0.06), 0.12, air + vehicle.tyre)
        self.rim = canvas.add((0.55, 0.55, 0.57), vehicle.rim_nir, air + vehicle.tyre * 0.5)
        bright: Colour = (1.0, 0.98, 0.9) if lit else (0.8, 0.8, 0.82)
        self.lamp = canvas.add(bright, 0.9, air + (10 if lit else 1))
        self.rear_lamp = canvas.add((0.75 if lit else 0.5, 0.08, 0.08), 0.5, air + (5 if lit else 1))
        self.exhaust = canvas.add((0.2, 0.2, 0.2), 0.3, air + vehicle.exhaust)
