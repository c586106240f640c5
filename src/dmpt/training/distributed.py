"""Several processes: what each computed on its share becomes the global batch's.

Features are gathered with their gradients, and every process computes heads, batch normalisation and losses on the
global batch. Gradients are averaged at the end. So two processes do what one does.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dmpt.base.errors import UserError
from dmpt.method.modalities import Features
from dmpt.method.network import Output

_T = TypeVar("_T")


def join_processes(precision: str) -> Accelerator:
    """The processes that torchrun started, or this one alone; precision ``fp32``, ``bf16`` or ``fp16``."""
    AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
    mixed = "no" if precision == "fp32" else precision
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and not dist.is_initialized():
        # torchrun's store still holds the addresses of the processes that it restarts: look under another name.
        store, rank, world = next(rendezvous("env://"))
        store = PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    # Unless told that it runs on the CPU, accelerate does not look for other processes there: each would run alone.
    return Accelerator(mixed_precision=mixed, cpu=not torch.accelerator.is_available())


@contextmanager
def partners(accelerator: Accelerator) -> Iterator[None]:
    """Inside, processes wait for each other; that another one has ended is a UserError."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        lost = any(word in said for word in ("gloo", "nccl", "closed by peer", "reset by peer"))
        if accelerator.num_processes == 1 or not lost:
            raise
        raise UserError(
            f"another of the {accelerator.num_processes} processes of this run has ended, see what it said; "
            "what was saved is intact: go on with the same command and --resume"
        ) from error


def once_a_node(work: Callable[[], _T], accelerator: Accelerator) -> _T:
    """What the first process of a machine makes of it, which can be pickled, for all processes there.

    What ``work`` raises is raised in the process that did it, and SystemExit in the others: one line is enough.
    """
    if accelerator.num_processes == 1:
        return work()
    # A group of its own, for NCCL takes those for dead who are waited for longer than ten minutes.
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    result, error = None, None
    if accelerator.is_local_main_process:
        try:
            result = work()
        except Exception as raised:
            error = raised
    everyone: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(everyone, (accelerator.is_local_main_process, result, error is not None), group=group)
    dist.destroy_process_group(group)
    if error is not None:
        raise error
    if any(failed for _, _, failed in everyone):
        raise SystemExit(2)
    done: list[_T] = [result for first, result, _ in everyone[: accelerator.process_index + 1] if first]
    return done[-1]  # the processes of a machine follow each other


class _Gather(torch.autograd.Function):
    """Every process's contiguous part, in the order of the processes; a gradient is the sum of what all make of it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part)
        return torch.cat(parts, dim=dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        whole = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size(), dim=ctx.dim)[dist.get_rank()], None


def gather(output: Output, present: Tensor, accelerator: Accelerator) -> Output:
    """The global batch's output, with gradients, from that of this process's share; the device's mask ``(3, b)``.

    ``output`` has no mask where its share is complete; what comes back has none where the whole batch is.
    """
    if accelerator.num_processes == 1:
        return output
    mask = accelerator.gather(present.T.contiguous()).T
    everywhere = None if mask.all() else mask

    def whole(part: Tensor, dim: int) -> Tensor:
        gathered: Tensor = _Gather.apply(part.contiguous(), dim)
        return gathered

    def features(part: Features | None) -> Features | None:
        return None if part is None else Features(whole(part.x, 1), everywhere)

    also = {name: whole(part, 0) for name, part in output.also.items()}
    own = Features(whole(output.features.x, 1), everywhere)
    return Output(own, features(output.projected), features(output.z), also)


def anyone(flag: bool, accelerator: Accelerator) -> bool:
    """Whether any process says so, which then holds for all."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def average_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Average over the processes; where a process has none, since its share lacks a modality, it counts as zero.

    Whether a head saw a sample is decided on the global batch. So what no process has a gradient for keeps none.
    """
    if accelerator.num_processes == 1:
        return
    own = list(parameters)
    has = torch.tensor([parameter.grad is not None for parameter in own], device=accelerator.device).float()
    for parameter, somewhere in zip(own, accelerator.reduce(has, "sum").tolist(), strict=True):
        if somewhere:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = accelerator.reduce(grad, "mean")
