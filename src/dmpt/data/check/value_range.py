"""``data.value_range: auto``: the range that pictures of more than 8 bits span."""

import math
from collections.abc import Iterable
from typing import Literal

from dmpt.data.check.looks import Looks
from dmpt.data.check.pictures import Deep
from dmpt.data.records import Record
from dmpt.settings.config import SIXTEEN_BITS, Range

# The share of the pictures that may be darker than the range, and the share that may be brighter.
_ODD = 0.02


def shown(value_range: Range) -> str:
    """As a user may write it, ``[LOW,HIGH]``."""
    return "[{:.6g},{:.6g}]".format(*value_range)


def settled(value_range: Range | Literal["auto"], records: Iterable[Record], looks: Looks) -> Range:
    """``data.value_range`` as two numbers: where it is ``auto`` those measured on ``records``, if any can be."""
    if value_range != "auto":
        return value_range
    return measured_on(records, looks) or SIXTEEN_BITS


def measured_on(records: Iterable[Record], looks: Looks) -> Range | None:
    """``measure_range`` of the pictures of more than 8 bits in these records."""
    pictures = (picture for record in records for picture in looks.pictures(record).values())
    return measure_range(picture.deep for picture in pictures if picture.deep)


def measure_range(pictures: Iterable[Deep]) -> Range | None:
    """The value range of a set of pictures, whatever hot pixels and odd frames are in it.

    Of each picture the 0.5th and the 99.5th percentile of its values are taken. The lowest 2 % of the former and the
    highest 2 % of the latter are set aside, one each at least where there are more than two pictures. The extremes of
    the others are the range, rounded outwards by at most a hundredth of its width.

    Returns:
        The values that become black and white; None where there is no picture, or all are of one value.
    """
    deep = list(pictures)
    if not deep:
        return None
    aside = max(1, int(_ODD * len(deep))) if len(deep) > 2 else 0
    low = sorted(picture.low for picture in deep)[aside]
    high = sorted(picture.high for picture in deep)[-1 - aside]
    if low >= high:
        return None
    digits = 2 - math.floor(math.log10(high - low))
    step = 10.0**-digits
    bottom, top = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return round(bottom * step, digits), round(top * step, digits)
