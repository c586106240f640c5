"""Cameras, places, hours and weather: everything about a shot that says nothing about who is in it."""

import math
from dataclasses import dataclass

import numpy as np

from dmpt.synthetic.canvas import Canvas, Colour

_HOURS = ("day", "dusk", "night")


@dataclass(frozen=True)
class Camera:
    """One place with its three aligned sensors."""

    azimuth: float  # from where subjects are mostly seen, in radians; 0 = their front
    scale: float  # of subjects in the picture
    tilt: float  # vertical foreshortening of a camera that looks down
    gain: float  # of the visible sensor
    cast: Colour  # its white balance error, per channel
    blur: float  # of the visible and near-infrared lenses, in pixels at 128 rows
    thermal_blur: float  # of the thermal lens, likewise
    thermal_follow: float  # share of the air's temperature by which the thermal sensor's black level follows it
    thermal_offset: float  # that level at 0 degrees
    thermal_span: float  # degrees from black to white
    lamp: float  # strength of the active near-infrared lamp
    place: int  # seed of the background
    exposure: float = 1.0  # of the visible sensor: far below 1 the place is dark at any hour
    drifts: bool = False  # whether gain and offset of the thermal sensor wander


def make_camera(draw: np.random.Generator, number: int, living: bool) -> Camera:
    """Draw the ``number``-th camera of a world; neighbours look from different sides.

    Thermal sensors are set to what they watch: living beings at 33 degrees, or things about as warm as the air.
    """
    red, green, blue = draw.uniform(0.86, 1.14, 3)
    return Camera(
        azimuth=number * math.pi * 0.5 + draw.uniform(-0.5, 0.5),
        scale=draw.uniform(0.86, 1.02),
        tilt=draw.uniform(0.9, 1.0),
        gain=draw.uniform(0.8, 1.2),
        cast=(float(red), float(green), float(blue)),
        blur=draw.uniform(0.2, 0.8),
        thermal_blur=draw.uniform(0.35, 0.75),
        thermal_follow=0.6 if living else 0.95,
        thermal_offset=draw.uniform(-3, 3) + (1 if living else -5),
        thermal_span=draw.uniform(28, 35),
        lamp=draw.uniform(0.6, 1.0),
        place=int(draw.integers(2**31)),
    )


@dataclass(frozen=True)
class Weather:
    """The conditions of one shot."""

    hour: str  # day, dusk or night
    light: float  # visible illumination; 1 = a bright day
    tint: Colour  # its colour
    sun: float  # near-infrared illumination by the sky
    air: float  # temperature in degrees Celsius
    side: float  # from where the light comes, -1 left to 1 right
    flare: float  # strength of a lamp that shines into the lens; 0 = none


def make_weather(draw: np.random.Generator, only: str = "any") -> Weather:
    """Draw the conditions: days, dusks and nights about as 9 : 4 : 7, or ``only`` one of them."""
    hour = _HOURS[int(np.searchsorted([0.45, 0.65], draw.random()))]
    hour = hour if only == "any" else only
    season = draw.uniform(-1, 1)
    if hour == "day":
        light, sun, air = draw.uniform(0.7, 1.15), draw.uniform(0.3, 0.9), 16 + 11 * season
        tint = (1.0, 1.0, float(draw.uniform(0.94, 1.08)))
    elif hour == "dusk":
        light, sun, air = draw.uniform(0.2, 0.45), draw.uniform(0.08, 0.3), 12 + 9 * season
        tint = (1.1, 0.95, float(draw.uniform(0.7, 1.0)))
    else:
        light, sun, air = draw.uniform(0.05, 0.16), 0.0, 8 + 8 * season
        tint = (1.25, 0.95, 0.6) if draw.random() < 0.5 else (0.85, 0.95, 1.2)
    chance = {"day": 0.06, "dusk": 0.2, "night": 0.35}[hour]
    flare = float(draw.uniform(0.5, 1.1)) if draw.random() < chance else 0.0
    return Weather(hour, float(light), tint, float(sun), float(air), float(draw.uniform(-1, 1)), flare)


def paint_background(canvas: Canvas, camera: Camera, weather: Weather, draw: np.random.Generator) -> None:
    """Paint the camera's place; ``draw`` moves it a little, as subjects stand at different spots."""
    fixed = np.random.default_rng(camera.place)
    air, width = weather.air, canvas.aspect
    warm = {"day": 7.0, "dusk": 4.0, "night": 1.0}[weather.hour]
    shift, horizon = draw.uniform(-0.15, 0.15), fixed.uniform(0.3, 0.75) + draw.uniform(-0.05, 0.05)

    def grey(low: float, high: float, tint: float = 0.05) -> Colour:
        level, hue = fixed.uniform(low, high), fixed.uniform(-tint, tint, 2)
        return (float(level + hue[0]), float(level), float(level + hue[1]))

    wall_colour = grey(0.3, 0.7, 0.12)
    wall = canvas.add(wall_colour, fixed.uniform(0.3, 0.7), air + warm * fixed.uniform(0, 0.6))
    canvas.box(0, 0, width, 1, wall)
    for _ in range(int(fixed.integers(1, 5))):
        kind = fixed.integers(4)
        x, y = fixed.uniform(-0.1, 1.1) * width + shift, fixed.uniform(0, 0.7)
        w, h = fixed.uniform(0.08, 0.3), fixed.uniform(0.1, 0.4)
        if kind == 0:  # a window: glass is opaque to thermal cameras and mirrors the cold sky
            glass = canvas.add(grey(0.15, 0.5), fixed.uniform(0.05, 0.3), air - fixed.uniform(1, 5))
            canvas.box(x, y, x + w, y + h, glass)
        elif kind == 1:  # a bush or tree: bright in near-infrared, cool
            leaf = canvas.add((0.12, float(fixed.uniform(0.25, 0.4)), 0.1), 0.75, air - 1)
            for dx, dy in fixed.uniform(-0.6, 0.6, (5, 2)):
                canvas.ellipse(x + dx * w, y + dy * h, w * 0.5, h * 0.4, leaf)
        elif kind == 2:  # a door or poster
            colour: Colour = tuple(fixed.uniform(0.1, 0.9, 3).tolist())
            canvas.box(x, y, x + w, y + h * 1.5, canvas.add(colour, fixed.uniform(0.1, 0.9), air + warm * 0.4))
        else:  # a warm vent
            canvas.box(x, y, x + w * 0.5, y + h * 0.3, canvas.add(grey(0.2, 0.4), 0.4, air + 9))
    if fixed.random() < 0.4:
        ground = canvas.add((0.2, float(fixed.uniform(0.3, 0.45)), 0.15), 0.7, air - 0.5)
    else:
        ground = canvas.add(grey(0.25, 0.6), fixed.uniform(0.15, 0.5), air + warm)
    canvas.box(0, horizon, width, 1, ground)
    if fixed.random() < 0.6:
        mark = canvas.add(grey(0.6, 0.9), 0.7, air + warm * 0.8)
        x = fixed.uniform(0, width) + shift
        canvas.polygon([(x, horizon), (x + 0.03, horizon), (x + 0.2, 1), (x + 0.1, 1)], mark)


def paint_occluder(canvas: Canvas, weather: Weather, draw: np.random.Generator) -> None:
    """Paint something in front of the subject, in a quarter of all shots: a pole, a bush, a box or a rail."""
    if draw.random() > 0.25:
        return
    colour: Colour = tuple(draw.uniform(0.1, 0.8, 3).tolist())
    thing = canvas.add(colour, float(draw.uniform(0.1, 0.8)), weather.air + float(draw.uniform(-1, 4)))
    width, kind = canvas.aspect, draw.integers(4)
    x = draw.uniform(0.1, 0.9) * width
    if kind == 0:
        thickness = draw.uniform(0.015, 0.04)
        canvas.box(x - thickness, 0, x + thickness, 1, thing)
    elif kind == 1:
        leaf = canvas.add((0.12, 0.32, 0.1), 0.75, weather.air - 1)
        for dx, dy in draw.uniform(-0.12, 0.12, (6, 2)):
            canvas.ellipse(x + dx, 0.95 + dy, 0.1, 0.1, leaf)
    elif kind == 2:
        top = draw.uniform(0.6, 0.85)
        canvas.box(x - 0.12, top, x + 0.12, 1, thing)
    else:
        top = draw.uniform(0.4, 0.75)
        canvas.box(0, top, width, top + 0.025, thing)
        canvas.box(0, top + 0.12, width, top + 0.14, thing)
