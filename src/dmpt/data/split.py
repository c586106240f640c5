"""Validation by identity, for choices that must not look at the test set."""

from collections.abc import Sequence

import torch

from dmpt.data.manifest import Record
from dmpt.errors import UserError


def hold_out(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Training and validation triplets, split by identity.

    Only identities seen by two or more cameras can be validated; of these the given share is drawn, at least two.

    Raises:
        UserError: too few identities are seen by two cameras.
    """
    cameras: dict[int, set[int]] = {}
    for record in records:
        cameras.setdefault(record.pid, set()).add(record.camera)
    able = sorted(pid for pid, seen in cameras.items() if len(seen) > 1)
    count = max(2, round(share * len(able)))
    if len(able) < count:
        raise UserError(
            f"train.select val needs identities seen by two or more cameras, and {len(able)} are; set train.select last"
        )
    order = torch.randperm(len(able), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {able[i] for i in order[:count]}
    return [r for r in records if r.pid not in held], [r for r in records if r.pid in held]
