"""``train.ema``: an exponential moving average of what is trained, over the optimiser's steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dmpt.method.network import DMPT

_SEEN = ("also.shared.mean", "also.shared.variance")


class EMA:
    """The average, beside a network that goes on training.

    Batch norm's running statistics are averaged like the rest, so that they belong to the averaged network. The
    shared part's are not: -1 in them means never seen, and an average would carry it on.

    Args:
        network: at its initial values, which are the average's first.
        decay: share of the average that a step keeps, in (0, 1). Early steps keep less, (1 + t) / (10 + t), so that the
            initial values are forgotten in short runs too.
    """

    def __init__(self, network: DMPT, decay: float):
        self.network = network
        self.decay = decay
        self.tensors = {n: t.detach().clone() for n, t in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        own = self.network.own_state().items()
        return {name: t for name, t in own if t.is_floating_point() and name not in _SEEN}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network after an optimiser's step, the ``step``-th batch (t, from 1)."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self._live().items():
            self.tensors[name].lerp_(tensor, 1 - keep)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside, the network holds the average; afterwards what it held before."""
        before = {name: t.detach().clone() for name, t in self._live().items()}
        self._put(self.tensors)
        try:
            yield
        finally:
            self._put(before)

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self._live().items():
            tensor.copy_(tensors[name])
