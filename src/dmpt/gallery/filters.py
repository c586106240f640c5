"""Which rows of a gallery a search counts: conditions in SQL, which Lance's own parser reads."""

from collections.abc import Sequence

import pyarrow as pa

from dmpt.base.errors import UserError, one_line
from dmpt.gallery.store import Gallery
from dmpt.gallery.times import TIME, moment


def conditions(
    gallery: Gallery,
    *,
    camera: Sequence[str] = (),
    not_camera: Sequence[str] = (),
    after: str | None = None,
    before: str | None = None,
    time_column: str = TIME,
    where: str | None = None,
) -> list[str]:
    """What all rows must meet that count, each a condition of its own.

    Args:
        gallery: whose columns they are about.
        camera: one of these.
        not_camera: none of these; rows whose camera is not known count.
        after: not before this moment (``times.moment``).
        before: before this moment.
        time_column: that both are about; rows that have none do not count.
        where: in SQL.

    Raises:
        UserError: the column is not there or holds no moments, or a moment is none.
    """
    found = []
    if camera:
        found.append(f"camera IN ({_listed(camera)})")
    if not_camera:
        found.append(f"camera IS NULL OR camera NOT IN ({_listed(not_camera)})")
    for flag, given, sign in (("--after", after, ">="), ("--before", before, "<")):
        if given is not None:
            said = moment(given, flag).replace(tzinfo=None).isoformat(" ", "microseconds")
            found.append(f"{_moments(gallery, time_column)} {sign} timestamp '{said}'")
    return found if where is None else [*found, where]


def _listed(labels: Sequence[str]) -> str:
    return ", ".join("'" + label.replace("'", "''") + "'" for label in labels)


def _moments(gallery: Gallery, column: str) -> str:
    """The column, as SQL names it."""
    names = gallery.schema.names
    if column not in names:
        raise UserError(f"{gallery.path} has no column {one_line(column)[:100]}; it has {', '.join(names)}")
    kind = gallery.schema.field(column).type
    if not pa.types.is_timestamp(kind):
        raise UserError(f"column {one_line(column)} of {gallery.path} holds {kind}, no moments; filter it with --where")
    return f"`{column}`"
