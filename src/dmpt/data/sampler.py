"""PK batches: P identities with K samples each, so that every anchor has positives and negatives in its batch."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from dmpt.base.errors import UserError
from dmpt.data.seeds import seed_for


class PKSampler:
    """Draws the batches of the field's random identity sampler, as a pure function of the epoch.

    Each identity's samples are shuffled and cut into groups of K; a shorter remainder sits the epoch out. An identity
    with fewer than K samples gives one group: all of them, filled up with random ones of them, each time augmented
    anew. Then P identities at a time are drawn among those that still have groups, until fewer than P have; left-over
    groups sit the epoch out. Which identities run out first is chance, so the *number of batches differs from epoch to
    epoch*: ask ``len(sampler.epoch(e))``, which takes milliseconds.

    Args:
        labels: identity of each sample.
        ids: P.
        instances: K.
        seed: of all draws.

    Raises:
        UserError: there are fewer than P identities, or only one.
    """

    def __init__(self, labels: Sequence[int], ids: int, instances: int, seed: int) -> None:
        self.ids, self.instances, self.seed = ids, instances, seed
        members: defaultdict[int, list[int]] = defaultdict(list)
        for index, label in enumerate(labels):
            members[label].append(index)
        self._total = len(labels)
        self._members = [members[label] for label in sorted(members)]
        count = len(self._members)
        if count < 2:
            raise UserError(f"identities in the training set: {count}; learning to tell them apart takes two or more")
        if count < ids:
            raise UserError(
                f"the training set has {count} identities, train.ids asks for {ids}; set it to at most {count}"
            )

    def epoch(self, epoch: int) -> list[list[int]]:
        """Global batches of an epoch.

        Returns:
            At least one batch; each holds P·K draws, the K of an identity side by side. Draw ``i + n N`` is the nth
            repetition of sample i of N (``n`` is 0 but for fillers): a number of its own, so that its augmentation,
            which depends on it, is another one.
        """
        generator = torch.Generator().manual_seed(seed_for("batches", self.seed, epoch))
        groups = [self._groups(indices, generator) for indices in self._members]
        batches = []
        alive = list(range(len(groups)))
        while len(alive) >= self.ids:
            chosen = [alive[i] for i in torch.randperm(len(alive), generator=generator)[: self.ids].tolist()]
            batches.append([index for identity in chosen for index in groups[identity].pop()])
            alive = [identity for identity in alive if groups[identity]]
        return batches

    def _groups(self, indices: list[int], generator: torch.Generator) -> list[list[int]]:
        size, count = self.instances, len(indices)
        shuffled = [indices[i] for i in torch.randperm(count, generator=generator).tolist()]
        if count < size:
            drawn = Counter[int]()
            for filler in torch.randint(count, (size - count,), generator=generator).tolist():
                drawn[filler] += 1
                shuffled.append(indices[filler] + drawn[filler] * self._total)
        return [shuffled[start : start + size] for start in range(0, len(shuffled) - size + 1, size)]


def shard(batch: Sequence[int], rank: int, world: int) -> list[int]:
    """The part of a global batch that process ``rank`` of ``world`` computes: contiguous and equal.

    Raises:
        UserError: the batch does not divide.
    """
    share, rest = divmod(len(batch), world)
    if rest:
        raise UserError(
            f"a batch of {len(batch)} samples does not divide among {world} processes; "
            "change train.ids, train.instances or the number of processes"
        )
    return list(batch[rank * share : (rank + 1) * share])
