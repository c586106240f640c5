"""Several processes: what each computed on its share becomes the global batch's.

Features are gathered with their gradients, and every process computes heads, batch normalisation and losses on the
global batch. Gradients are averaged at the end. So two processes do what one does.
"""

from collections.abc import Iterable

import torch
import torch.distributed.nn.functional as distributed
from accelerate import Accelerator
from torch import Tensor, nn

from dmpt.method.modalities import Features
from dmpt.method.network import Output


def gather(output: Output, present: Tensor, accelerator: Accelerator) -> Output:
    """The global batch's output, with gradients.

    Args:
        output: of this process's share.
        present: its mask ``(3, b)``, on the device; ``output`` has none where its share is complete.
        accelerator: of the run.

    Returns:
        Its mask is None where the whole batch is complete.
    """
    if accelerator.num_processes == 1:
        return output
    mask = accelerator.gather(present.T.contiguous()).T
    everywhere = None if mask.all() else mask

    def whole(part: Tensor, dim: int) -> Tensor:
        return torch.cat(distributed.all_gather(part.contiguous()), dim=dim)  # type: ignore[no-untyped-call]

    def features(part: Features | None) -> Features | None:
        return None if part is None else Features(whole(part.x, 1), everywhere)

    also = {name: whole(part, 0) for name, part in output.also.items()}
    own = Features(whole(output.features.x, 1), everywhere)
    return Output(own, features(output.projected), features(output.z), also)


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Average over the processes.

    All have gradients for the same parameters: whether a head saw a sample is decided on the global batch, and a
    modality that a share lacks has gradients of zero.
    """
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
