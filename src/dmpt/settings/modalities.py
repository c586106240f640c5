"""The three spectra, in their order, and what others call them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

#: Order of the modalities wherever they are stacked.
MODALITIES = ("rgb", "nir", "tir")
#: What others call them.
ALSO = {
    **dict.fromkeys(("visible", "vis", "colour", "color"), "rgb"),
    **dict.fromkeys(("near-infrared", "near_infrared", "ni"), "nir"),
    **dict.fromkeys(("thermal", "infrared", "ti", "th", "lwir"), "tir"),
}


def number_of(names: Iterable[str]) -> int:
    """A set of modalities as a number, bit m for modality m."""
    return sum(1 << MODALITIES.index(name) for name in names)


def names_of(number: int) -> tuple[str, ...]:
    """A set of modalities by their names, of the number that ``number_of`` gives."""
    return tuple(name for m, name in enumerate(MODALITIES) if number >> m & 1)


def called(name: str) -> str | None:
    """The modality that a file or folder is called by, in any case of letters; None where it is none."""
    return {**{one: one for one in MODALITIES}, **ALSO}.get(name.lower())


def meant(name: str, known: Sequence[str], also: Mapping[str, str]) -> str | None:
    """The known name that a user may have meant by another; None where there is no guess.

    Args:
        name: what the user wrote.
        known: the right names, in lower case.
        also: what others call them.
    """
    near = difflib.get_close_matches(name.lower(), known, 1)
    return near[0] if near else also.get(name.lower())
