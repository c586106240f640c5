"""Colours, and the draws of them that persons and vehicles share."""

from collections.abc import Sequence

import numpy as np

from dmpt.synthetic.canvas import Colour

COLOURS: dict[str, Colour] = {
    "black": (0.07, 0.07, 0.08),
    "grey": (0.4, 0.4, 0.42),
    "navy": (0.09, 0.11, 0.27),
    "white": (0.86, 0.86, 0.84),
    "red": (0.68, 0.12, 0.13),
    "blue": (0.16, 0.32, 0.7),
    "green": (0.15, 0.43, 0.2),
    "yellow": (0.82, 0.72, 0.18),
    "brown": (0.38, 0.24, 0.14),
    "beige": (0.72, 0.62, 0.46),
    "pink": (0.85, 0.5, 0.6),
    "purple": (0.4, 0.18, 0.5),
}
TONES = ("dark", "grey", "bright")
"""Of near-infrared, in words."""


def one_of(draw: np.random.Generator, options: Sequence[str]) -> str:
    """Any of them."""
    return options[int(draw.integers(len(options)))]


def shade(draw: np.random.Generator, name: str, darkest: float) -> Colour:
    """A colour a little brighter or darker than its name says."""
    red, green, blue = np.clip(np.array(COLOURS[name]) * draw.uniform(0.85, 1.15), darkest, 0.95)
    return (float(red), float(green), float(blue))


def level(value: float, names: tuple[str, str, str]) -> str:
    """A share in [0, 1], in words."""
    return names[min(int(value * 3), 2)]
