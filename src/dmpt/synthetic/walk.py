"""A person painted at a moment of a walk."""

import math

import numpy as np

from dmpt.synthetic.canvas import Canvas, Point
from dmpt.synthetic.palette import COLOURS
from dmpt.synthetic.person import HAIR, Cloth, Person
from dmpt.synthetic.scene import Camera, Weather


def paint_person(
    canvas: Canvas, person: Person, camera: Camera, weather: Weather, draw: np.random.Generator, at: Point | None = None
) -> None:
    """Paint a person in a random moment of a walk, which ``draw`` decides: place, facing, gait.

    The feet are ``at``, in the canvas's coordinates; None = near the lower middle.
    """
    facing = camera.azimuth + draw.normal(0, 0.45)
    side, front = math.sin(facing), math.cos(facing)
    phase = draw.uniform(0, 2 * math.pi)
    tall = 0.84 * person.height * camera.scale * draw.uniform(0.95, 1.05)
    if at is None:
        at = (canvas.aspect * 0.5 + draw.normal(0, 0.02), 0.955 + draw.normal(0, 0.012))
    wide = tall * person.girth
    x, feet = at
    tall *= camera.tilt

    def y(level: float) -> float:
        """Height above the ground, 0 to 1, as a coordinate."""
        return feet - level * tall

    label = _Labels(canvas, person, weather)
    depth = 0.055 * wide * (0.72 + 0.28 * abs(front))  # half width of the hips
    chest = 0.105 * wide * (0.62 + 0.38 * abs(front))
    swing = math.sin(phase) * 0.5
    spread = 0.5 * depth * abs(front) + 0.006
    hip, knee, ankle = y(0.5), 0.25 * tall, 0.23 * tall

    def leg(sign: int) -> None:
        angle = swing * sign
        bend = max(0.0, -angle) * 0.9
        start = (x + sign * spread * (1 if front > 0 else -1), hip)
        reach = side * math.sin(angle) * knee
        mid = (start[0] + reach, start[1] + knee * math.cos(angle * 0.6))
        end = (mid[0] + side * math.sin(angle - bend) * ankle, mid[1] + ankle * math.cos((angle - bend) * 0.6))
        bare = person.lower != "trousers"
        canvas.limb(mid, end, 0.036 * wide, 0.026 * wide, label.skin if bare else label.lower)
        if person.lower != "skirt":
            canvas.limb(start, mid, 0.056 * wide, 0.04 * wide, label.lower)
        else:
            canvas.limb(start, mid, 0.05 * wide, 0.036 * wide, label.skin)
        canvas.ellipse(end[0] + side * 0.02 * tall, end[1] + 0.008 * tall, 0.035 * wide, 0.02 * tall, label.shoe)

    def arm(sign: int) -> None:
        angle = -swing * sign * 0.9
        start = (x + sign * chest * 0.95 * abs(front) * (1 if front > 0 else -1), y(0.79))
        reach = side * math.sin(angle) * 0.17 * tall + sign * 0.02 * tall * abs(front)
        elbow = (start[0] + reach, start[1] + 0.17 * tall * math.cos(angle * 0.5))
        hand = (elbow[0] + side * math.sin(angle + 0.3) * 0.15 * tall, elbow[1] + 0.15 * tall)
        short = person.upper in ("t-shirt", "vest")
        canvas.limb(elbow, hand, 0.028 * wide, 0.022 * wide, label.skin if short else label.sleeve)
        canvas.limb(start, elbow, 0.038 * wide, 0.03 * wide, label.skin if person.upper == "vest" else label.sleeve)
        canvas.ellipse(*hand, 0.022 * wide, 0.022 * wide, label.skin)

    near = 1 if side >= 0 else -1
    arm(-near)
    leg(-near)
    leg(near)
    if person.bag == "suitcase":
        left = x + 0.2 * wide * (1 if side > -0.3 else -1)
        canvas.box(left - 0.06 * wide, y(0.3), left + 0.06 * wide, y(0.0), label.bag)
        canvas.box(left - 0.006, y(0.47), left + 0.006, y(0.3), label.bag)
    if person.lower == "skirt":
        canvas.polygon(
            [(x - depth, y(0.56)), (x + depth, y(0.56)), (x + depth * 1.9, y(0.27)), (x - depth * 1.9, y(0.27))],
            label.lower,
        )
    hem = {"t-shirt": 0.48, "vest": 0.5, "jacket": 0.46, "coat": 0.27}[person.upper]
    back_in_front = person.bag == "backpack" and front < 0.35
    if person.bag == "backpack" and not back_in_front:
        canvas.ellipse(x - side * chest, y(0.68), chest * (0.4 + 0.5 * abs(side)), 0.12 * tall, label.bag)
    half = depth * (1.6 if person.upper == "coat" else 1.3)
    outline = [(chest * 0.55, y(0.84)), (chest, y(0.79)), (depth * 1.25, y(0.55)), (half, y(hem))]
    mirrored = [(x - dx, level) for dx, level in outline]
    canvas.polygon([mirrored[0], *((x + dx, level) for dx, level in outline), *mirrored[:0:-1]], label.upper)
    if back_in_front:
        middle = x - side * chest * 0.8
        canvas.ellipse(middle, y(0.67), chest * (0.5 + 0.25 * abs(front)), 0.13 * tall, label.bag)
    if person.bag == "shoulder bag":
        hang = x + chest * (0.9 if front > 0 else -0.9)
        canvas.limb((x - (hang - x) * 0.6, y(0.82)), (hang, y(0.5)), 0.008, 0.008, label.bag)
        canvas.box(hang - 0.055 * wide, y(0.53), hang + 0.055 * wide, y(0.4), label.bag)
    arm(near)
    _paint_head(canvas, person, label, (x + side * 0.012 * tall, y(0.925)), tall, side, front)
    area = (x - chest, y(0.84), x + chest, y(hem))
    _dress(canvas, person.upper_cloth, label.upper, area, front > 0)
    _dress(canvas, person.lower_cloth, label.lower, (x - depth * 2, y(0.5), x + depth * 2, y(0.03)), True)


def _paint_head(
    canvas: Canvas, person: Person, label: "_Labels", at: Point, tall: float, side: float, front: float
) -> None:
    x, y = at
    rx, ry = 0.048 * tall, 0.066 * tall
    if person.long_hair:
        canvas.ellipse(x - side * 0.02 * tall, y + 0.035 * tall, rx * 1.15, ry * 1.35, label.hair)
    canvas.limb((x, y), (x, y + 0.1 * tall), 0.026 * tall, 0.03 * tall, label.skin)
    canvas.ellipse(x, y, rx, ry, label.skin)
    if front < -0.3:
        canvas.ellipse(x, y - 0.006 * tall, rx, ry * (1.3 if person.long_hair else 0.9), label.hair)
    else:
        canvas.ellipse(x - side * 0.022 * tall, y - 0.024 * tall, rx * (1 - 0.1 * abs(side)), ry * 0.66, label.hair)
    if person.hat:
        canvas.ellipse(x, y - 0.03 * tall, rx * 1.08, ry * 0.62, label.hat)
        canvas.box(
            x - rx * (1.1 - side * 0.3), y - 0.032 * tall, x + rx * (1.1 + side * 0.3), y - 0.014 * tall, label.hat
        )


def _dress(canvas: Canvas, cloth: Cloth, label: int, area: tuple[float, float, float, float], front: bool) -> None:
    """Prints, panels and quilting of one garment; a logo is on the front alone."""
    if front or cloth.pattern not in ("logo", "sash"):
        canvas.texture("rgb", label, area, cloth.pattern, cloth.second_shade)
    if front or cloth.panel != "patch":
        canvas.texture("nir", label, area, cloth.panel, cloth.panel_nir)
    if front or cloth.quilt != "patch":
        change = (cloth.insulation - cloth.quilt_insulation) * 18
        canvas.texture("tir", label, area, cloth.quilt, canvas.surfaces[label].tir + change)


class _Labels:
    """A person's surfaces on a canvas, at the weather's temperatures."""

    def __init__(self, canvas: Canvas, person: Person, weather: Weather) -> None:
        air = weather.air
        body = 33.0 + person.warmth - 0.12 * max(22 - air, 0)

        def covered(insulation: float) -> float:
            return air + (body - air) * (1 - insulation)

        def cloth(of: Cloth, darker: float = 1.0) -> int:
            sun = 3.0 * (1 - sum(of.shade) / 3) * (weather.hour == "day")  # warms dark cloth
            return canvas.add(of.shade, of.nir, covered(of.insulation) + sun, darker)

        self.skin = canvas.add(person.skin, 0.62, body)
        self.hair = canvas.add(HAIR[person.hair], 0.45, covered(0.55))
        self.upper = cloth(person.upper_cloth)
        self.sleeve = cloth(person.upper_cloth, 0.92)
        self.lower = cloth(person.lower_cloth)
        self.shoe = canvas.add(COLOURS[person.shoe], person.shoe_nir, air + (body - air) * person.shoe_warmth * 0.6)
        self.bag = canvas.add(COLOURS[person.bag_colour], person.bag_nir, air + 1.5)
        self.hat = canvas.add(COLOURS[person.hat_colour], person.hat_nir, covered(0.7))
