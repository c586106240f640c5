"""Persons: what stays the same about one, drawn once, and in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dmpt.synthetic.canvas import Colour
from dmpt.synthetic.palette import COLOURS, TONES, level, one_of, shade
from dmpt.synthetic.setup import SHAPE

# How often each of the colours is worn: mostly dark and grey, so that colour alone leaves many look-alikes.
_COMMON = (0.2, 0.15, 0.13, 0.09, 0.09, 0.09, 0.06, 0.04, 0.06, 0.05, 0.02, 0.02)
HAIR: dict[str, Colour] = {
    "black": (0.06, 0.05, 0.05),
    "brown": (0.25, 0.15, 0.09),
    "blond": (0.7, 0.57, 0.33),
    "grey": (0.55, 0.55, 0.55),
}
_SKIN: tuple[Colour, ...] = ((0.86, 0.66, 0.55), (0.72, 0.52, 0.4), (0.5, 0.34, 0.25), (0.32, 0.21, 0.16))
_UPPERS = ("t-shirt", "jacket", "coat", "vest")
_LOWERS = ("trousers", "trousers", "trousers", "shorts", "skirt")
_BAGS = ("no bag", "no bag", "backpack", "shoulder bag", "suitcase")
_VISIBLE = ("plain", "plain", "plain", "stripes", "hoops", "checks", "block", "logo", "sash")
_HIDDEN = ("plain", "plain", "yoke", "sides", "centre", "wide hoops", "patch", "block")
_WARMTH = ("plain", "plain", "centre", "hoops", "patch", "block", "yoke")


@dataclass(frozen=True)
class Cloth:
    """A garment's material."""

    SHOWN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rgb": ("colour", "shade", "pattern", "second", "second_shade"),
        "nir": ("nir", "panel", "panel_nir"),
        "tir": ("insulation", "quilt", "quilt_insulation"),
        SHAPE: (),
    }

    colour: str
    shade: Colour  # its visible reflectance
    pattern: str  # printed in visible colours
    second: str  # the other colour's name
    second_shade: Colour
    nir: float  # reflectance in the near-infrared: that of fibre and dye, unrelated to the colour
    panel: str  # parts of another fibre, of much the same colour
    panel_nir: float
    insulation: float  # share of the body's warmth that stays inside, in [0, 1]
    quilt: str  # parts that insulate otherwise
    quilt_insulation: float


@dataclass(frozen=True)
class Person:
    """What stays the same about a person from picture to picture."""

    SHOWN: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "rgb": ("skin", "hair", "shoe", "bag_colour", "hat_colour"),
        "nir": ("shoe_nir", "bag_nir", "hat_nir"),
        "tir": ("shoe_warmth", "warmth"),
        SHAPE: ("height", "girth", "long_hair", "upper", "lower", "bag", "hat"),
    }

    height: float
    girth: float
    skin: Colour
    hair: str
    long_hair: bool
    upper: str
    upper_cloth: Cloth
    lower: str
    lower_cloth: Cloth
    shoe: str
    shoe_nir: float
    shoe_warmth: float
    bag: str
    bag_colour: str
    bag_nir: float
    hat: bool
    hat_colour: str
    hat_nir: float
    warmth: float

    def caption(self, modality: str) -> str:
        """What one spectrum shows of the person, in words."""
        upper, lower, warmth = self.upper_cloth, self.lower_cloth, ("warm", "lukewarm", "cold")
        top, part, pattern, bottom, bag = {
            "rgb": (upper.colour, upper.second, upper.pattern, lower.colour, self.bag_colour),
            "nir": (
                *(level(upper.nir, TONES), level(upper.panel_nir, TONES), upper.panel),
                *(level(lower.nir, TONES), level(self.bag_nir, TONES)),
            ),
            "tir": (
                *(level(upper.insulation, warmth), level(upper.quilt_insulation, warmth), upper.quilt),
                *(level(lower.insulation, warmth), "cold"),
            ),
        }[modality]
        top = f"person in a {top} {self.upper}" + ("" if pattern == "plain" else f" with {part} {pattern}")
        bottom = f"{bottom} {self.lower}"
        carried = "" if self.bag == "no bag" else f", with a {bag} {self.bag}"
        if modality != "rgb":
            return f"{top} and {bottom}{carried}"
        hat = f", a {self.hat_colour} hat" if self.hat else ""
        hair = f", {'long' if self.long_hair else 'short'} {self.hair} hair"
        return f"{top}, {bottom} and {self.shoe} shoes{hat}{hair}{carried}"


def make_person(draw: np.random.Generator) -> Person:
    """Draw a person."""
    upper = one_of(draw, _UPPERS)
    warm = {"t-shirt": (0.05, 0.5), "vest": (0.1, 0.7), "jacket": (0.2, 0.85), "coat": (0.3, 0.95)}[upper]
    return Person(
        height=float(draw.uniform(0.91, 1.07)),
        girth=float(draw.uniform(0.85, 1.22)),
        skin=_SKIN[int(draw.integers(len(_SKIN)))],
        hair=one_of(draw, tuple(HAIR)),
        long_hair=bool(draw.random() < 0.4),
        upper=upper,
        upper_cloth=_cloth(draw, warm),
        lower=one_of(draw, _LOWERS),
        lower_cloth=_cloth(draw, (0.05, 0.9), plainer=True),
        shoe=_colour(draw),
        shoe_nir=float(draw.uniform(0.1, 0.9)),
        shoe_warmth=float(draw.uniform(0.05, 0.6)),
        bag=one_of(draw, _BAGS),
        bag_colour=_colour(draw),
        bag_nir=float(draw.uniform(0.08, 0.9)),
        hat=(hat := bool(draw.random() < 0.25)),
        hat_colour=_colour(draw) if hat else "black",
        hat_nir=float(draw.uniform(0.1, 0.9)),
        warmth=float(draw.uniform(-1.5, 1.5)),
    )


def _colour(draw: np.random.Generator) -> str:
    return tuple(COLOURS)[int(draw.choice(len(_COMMON), p=_COMMON))]


def _cloth(draw: np.random.Generator, warm: tuple[float, float], plainer: bool = False) -> Cloth:
    colour = _colour(draw)
    second = _colour(draw)
    plain = plainer and draw.random() < 0.7
    nir = float(draw.choice([0.14, 0.32, 0.55, 0.8]) + draw.uniform(-0.06, 0.06))
    insulation = float(draw.uniform(*warm))
    return Cloth(
        colour=colour,
        shade=shade(draw, colour, 0.04),
        pattern="plain" if plain or second == colour else one_of(draw, _VISIBLE),
        second=second,
        second_shade=shade(draw, second, 0.04),
        nir=nir,
        panel="plain" if plain else one_of(draw, _HIDDEN),
        panel_nir=float(np.clip(nir + draw.choice([-0.35, 0.35]), 0.08, 0.92)),
        insulation=insulation,
        quilt="plain" if plain else one_of(draw, _WARMTH),
        quilt_insulation=float(np.clip(insulation + draw.choice([-0.35, 0.35]), 0.0, 1.0)),
    )
