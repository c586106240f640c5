"""Moments: what a column ``time`` may hold, and how it is kept."""

from collections.abc import Iterable
from datetime import date, datetime, timezone
from typing import Any

import pyarrow as pa

from dmpt.base.errors import UserError, one_line

TIME = "time"
"""The user's column that holds moments, where there is one."""
MOMENT = pa.timestamp("us", tz="UTC")
"""How it is kept."""
_MILLISECONDS = 1e11
"""An epoch from here on counts milliseconds: in seconds it would be the year 5138."""
_FORMS = "give ISO 8601 as in 2026-03-01T14:00:00Z, seconds or milliseconds since 1970, or timestamps"


def moment(value: Any, where: str) -> datetime:
    """One moment, in UTC.

    Args:
        value: ISO 8601 text, of which a date alone is its first moment; a number or digits, seconds since 1970
            (milliseconds from 10^11 on); a date or a datetime. What has no zone is UTC.
        where: the flag, or the column and row, for a message.

    Raises:
        UserError: it is none of these.
    """
    try:
        found = _parsed(value)
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise UserError(f"{where}: {one_line(str(value))[:80]!r} is no time; {_FORMS}") from error


def moments(values: Iterable[Any], where: str = TIME) -> pa.Array:
    """A column of moments, of type ``MOMENT``; None and empty text are null.

    Raises:
        UserError: a value is no time; it names the row, counted from 0.
    """
    found = [
        None if value is None or value == "" else moment(value, f"{where}, row {row}")
        for row, value in enumerate(values)
    ]
    return pa.array(found, MOMENT)


def _parsed(value: Any) -> datetime:
    """As it stands, maybe without a zone."""
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        text = value.strip()
        try:
            value = float(text)
        except ValueError:
            # Python 3.10 reads neither Z nor a zone without a colon.
            return datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
        if len(text.partition(".")[0]) == 8:  # 20260301: a date to some, a day of August 1970 to others
            raise ValueError
    number = float(value)
    return datetime.fromtimestamp(number / 1000 if abs(number) >= _MILLISECONDS else number, timezone.utc)
