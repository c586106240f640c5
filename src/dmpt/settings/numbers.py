"""Numbers within their ranges: the types of settings and flags. To a type checker they are ``int`` and ``float``."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite
from typing import Annotated


@dataclass(frozen=True)
class _Limit:
    """What a number must be, in words, and whether it is."""

    words: str
    holds: Callable[[float], bool]


Count = Annotated[int, _Limit("a whole number of at least 0", lambda n: n >= 0)]
Positive = Annotated[int, _Limit("a whole number of at least 1", lambda n: n >= 1)]
Several = Annotated[int, _Limit("a whole number of at least 2", lambda n: n >= 2)]
Seed = Annotated[int, _Limit("a whole number from 0 to below 2^63", lambda n: 0 <= n < 2**63)]

Port = Annotated[int, _Limit("a whole number from 0 to 65535", lambda n: 0 <= n <= 65535)]

Finite = Annotated[float, _Limit("a finite number", isfinite)]
AboveZero = Annotated[float, _Limit("a number above 0", lambda x: 0 < x < inf)]
Weight = Annotated[float, _Limit("a number of at least 0", lambda x: 0 <= x < inf)]
Share = Annotated[float, _Limit("a number from 0 to 1", lambda x: 0 <= x <= 1)]
ShareBelowOne = Annotated[float, _Limit("a number from 0 to below 1", lambda x: 0 <= x < 1)]
ShareAboveZero = Annotated[float, _Limit("a number above 0, up to 1", lambda x: 0 < x <= 1)]
ShareBetween = Annotated[float, _Limit("a number between 0 and 1, both excluded", lambda x: 0 < x < 1)]
