"""What is wrong with this data, before an epoch is spent on it."""

import os
from collections.abc import Sequence

from dmpt.data.images import find_broken
from dmpt.data.manifest import Record
from dmpt.errors import UserError
from dmpt.progress import bar


def keep_readable(
    records: Sequence[Record], value_range: tuple[float, float], skip: bool
) -> tuple[Sequence[Record], list[str]]:
    """Decode every image once.

    Args:
        records: triplets.
        value_range: of 16-bit images (``images.read_image``).
        skip: leave out triplets with an unreadable image instead of refusing them.

    Returns:
        The readable triplets (``records`` itself when all are), and for each of the others what was wrong.

    Raises:
        UserError: a file does not decode and ``skip`` is off.
    """
    with bar() as display:
        task = display.add_task("checking images", total=len(records), note="")
        broken = find_broken(
            records, value_range, os.cpu_count() or 1, lambda done: display.update(task, completed=done)
        )
    if broken and not skip:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"{broken[0][1]}{more}, or leave such triplets out with --skip-broken")
    if not broken:
        return records, []
    bad: dict[int, str] = {}
    for index, message in broken:
        bad[index] = f"{bad[index]}, {message}" if index in bad else message
    if len(bad) == len(records):
        raise UserError(f"none of {len(records)} triplets can be read: {broken[0][1]}")
    return [record for index, record in enumerate(records) if index not in bad], list(bad.values())
