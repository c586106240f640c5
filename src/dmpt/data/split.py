"""Splits by identity: own data into train and test, and validation that does not look at the test set."""

from collections.abc import Sequence
from typing import Literal

from dmpt.base.errors import UserError
from dmpt.data.records import Record, Records
from dmpt.data.seeds import seed_for


def view_of(protocol: str) -> Literal["camera", "scene"]:
    """What tells two views of an identity apart under a protocol: ``scene`` or ``camera``, names of ``Record``."""
    return "scene" if protocol == "same_scene" else "camera"


def _seen_by_two(records: Sequence[Record], protocol: str) -> list[int]:
    """Identities that two or more cameras (scenes, where the protocol looks at these) have seen, ascending."""
    view, views = view_of(protocol), dict[int, set[int]]()
    for record in records:
        views.setdefault(record.pid, set()).add(getattr(record, view))
    return sorted(pid for pid, seen in views.items() if len(seen) > 1)


def held_out_count(records: Sequence[Record], share: float, protocol: str) -> int:
    """How many identities ``hold_out`` holds out, or would if there were as many."""
    return _share_of(_seen_by_two(records, protocol), share)


def _share_of(able: list[int], share: float) -> int:
    return max(2, round(share * len(able)))


def hold_out(
    records: Sequence[Record], share: float, seed: int, protocol: str = "same_camera"
) -> tuple[list[Record], list[Record]]:
    """Training and validation samples, split by identity.

    Only identities seen by two or more cameras can be validated; of these the given share is drawn, at least two.

    Raises:
        UserError: too few identities are seen by two.
    """
    able = _seen_by_two(records, protocol)
    count = _share_of(able, share)
    if len(able) < count:
        raise UserError(
            f"train.select val needs identities seen by two or more {view_of(protocol)}s, and {len(able)} are; "
            "set train.select last"
        )
    import torch  # here: pictures are listed and split by identity without it

    order = torch.randperm(len(able), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {able[i] for i in order[:count]}
    return [r for r in records if r.pid not in held], [r for r in records if r.pid in held]


def fewer(records: Sequence[Record], share: float, seed: int) -> Sequence[Record]:
    """The records of a share of the identities, at least two: the first in an order that the seed draws."""
    if share == 1:
        return records
    pids = {record.pid for record in records}
    order = sorted(pids, key=lambda pid: seed_for("fewer", seed, pid))
    kept = {*order[: max(2, round(share * len(pids)))]}
    return [record for record in records if record.pid in kept]


def split_by_identity(records: Records, share: float, seed: int) -> tuple[Records, Records]:
    """Training and test records of data that nobody has split; ``share`` of the identities, in (0, 1), are tested.

    Every identity draws its own lot from the seed, so that it stays on its side when others are added or removed. Hence
    the share is met on average, not exactly; where all would fall to one side, the last to do so goes to the other.

    Raises:
        UserError: there is but one identity.
    """
    lots = {pid: seed_for("split", seed, pid) / 2**64 for pid in {record.pid for record in records}}
    if len(lots) < 2:
        raise UserError(f"all images show one identity ({records[0].file.parent}); a split takes two or more")
    order = sorted(lots, key=lots.__getitem__)
    tested = ({pid for pid, lot in lots.items() if lot < share} | {order[0]}) - {order[-1]}
    return tuple(r for r in records if r.pid not in tested), tuple(r for r in records if r.pid in tested)
