"""From materials to pictures: the same canvas under visible light, near-infrared light, and by its own warmth."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dmpt.synthetic.canvas import Bytes, Canvas
from dmpt.synthetic.scene import Camera, Weather

_Plane = NDArray[np.floating]


def see_rgb(canvas: Canvas, camera: Camera, weather: Weather, draw: np.random.Generator) -> Bytes:
    """Visible: reflectance times light; poor by night, ruined by lamps that shine into the lens; ``(H, W, 3)``."""
    shape, lit = canvas.size, weather.light * camera.exposure
    light = _shading(shape, weather, draw, 0.35) * np.float32(lit * camera.gain)
    # The sensor's automatic gain makes up for some of the dark, and amplifies its noise.
    gain = min(1 / max(lit, 0.05), 4.0) ** 0.75
    colour = np.array(weather.tint, dtype=np.float32) * np.array(camera.cast, dtype=np.float32)
    seen = canvas.render("rgb") * (light[..., None] * colour * np.float32(gain))
    if weather.flare:
        seen += _flare(shape, draw)[..., None] * np.float32(weather.flare) * np.array(weather.tint, dtype=np.float32)
    noise = 0.012 + 0.05 * max(gain - 1, 0) / 2
    if weather.hour == "night" or camera.exposure < 1:  # a sensor starved of light loses colour
        grey = seen.mean(axis=2, keepdims=True)
        kept = draw.uniform(0.15, 0.6) if weather.hour == "night" else 0.15
        seen = grey + (seen - grey) * np.float32(kept)
    return _sensor(seen, camera.blur, noise, shape, draw)


def see_nir(canvas: Canvas, camera: Camera, weather: Weather, draw: np.random.Generator) -> Bytes:
    """Near-infrared: reflectance under the sky and the camera's own lamp, brightest in the middle; ``(H, W)``."""
    shape = canvas.size
    y, x = _grid(shape)
    fall = np.exp(-((x - np.float32(draw.uniform(-0.3, 0.3))) ** 2 + (y - np.float32(0.1)) ** 2) * np.float32(0.8))
    light = _shading(shape, weather, draw, 0.25) * np.float32(weather.sun)
    light = light + fall * np.float32(camera.lamp * draw.uniform(0.7, 1.15))
    seen = canvas.render("nir") * light / np.float32(max(weather.sun + camera.lamp * 0.8, 0.8))
    if weather.flare:
        seen = seen + _flare(shape, draw) * np.float32(weather.flare * 0.45)
    return _sensor(seen, camera.blur * 1.2, 0.025, shape, draw)


def see_tir(canvas: Canvas, camera: Camera, weather: Weather, draw: np.random.Generator) -> Bytes:
    """Thermal: temperature on the camera's own scale, whose black level follows the air; blurred; ``(H, W)``."""
    low = camera.thermal_follow * weather.air + camera.thermal_offset + draw.uniform(-1.5, 1.5)
    span = camera.thermal_span
    if camera.drifts:  # by day and night its sensor warms and cools; a frame is of any moment
        moment = draw.uniform(0, 2 * math.pi)
        low, span = low + 9 * math.sin(moment), span * (1 + 0.5 * math.cos(moment))
    seen = (canvas.render("tir") - np.float32(low)) / np.float32(span)
    return _sensor(seen, camera.thermal_blur, 0.013, canvas.size, draw)


def _grid(shape: tuple[int, int]) -> tuple[_Plane, _Plane]:
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    return y, x


def _shading(shape: tuple[int, int], weather: Weather, draw: np.random.Generator, depth: float) -> _Plane:
    """Light from one side, and folds: a smooth random field around 1."""
    noise = Image.fromarray(draw.standard_normal((9, 6), dtype=np.float32))
    folds = noise.resize(shape[::-1], Image.Resampling.BICUBIC)
    _, x = _grid(shape)
    field = 1 + np.float32(weather.side * depth) * x + np.asarray(folds) * np.float32(0.09)
    result: _Plane = field.clip(0.2, 2)
    return result


def _flare(shape: tuple[int, int], draw: np.random.Generator) -> _Plane:
    """A lamp's glow and its streak."""
    y, x = _grid(shape)
    cy, cx = draw.uniform(-0.9, 0.5), draw.uniform(-0.9, 0.9)
    radius = draw.uniform(0.25, 0.7)
    squared = ((y - np.float32(cy)) * np.float32(1.4)) ** 2 + (x - np.float32(cx)) ** 2
    glow = np.exp(-squared / np.float32(radius**2)) + np.float32(0.25)
    streak = np.exp(-np.abs(y - np.float32(cy)) * 30) * np.float32(0.5)
    result: _Plane = glow + streak
    return result


def _sensor(
    seen: NDArray[np.floating], blur: float, noise: float, shape: tuple[int, int], draw: np.random.Generator
) -> Bytes:
    """Blur of the lens, noise of the sensor, eight bits."""
    clean = Image.fromarray((seen.clip(0, 1) * 255).astype(np.uint8))
    radius = blur * shape[0] / 128 * draw.uniform(0.6, 1.5)
    blurred = np.asarray(clean.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32)
    grain = draw.standard_normal(seen.shape, dtype=np.float32) * np.float32(noise * 255)
    result: Bytes = (blurred + grain).clip(0, 255).astype(np.uint8)
    return result
