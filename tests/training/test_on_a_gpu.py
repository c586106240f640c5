"""What a step asks of a GPU, as far as a CPU can show it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmpt.base.errors import UserError
from dmpt.training.trainer import Trainer
from runs import settings


class Asked(TorchDispatchMode):
    """Counts the numbers that Python asks tensors for, one by one: each waits for all work that a GPU was given."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_batch_is_not_waited_for_term_by_term(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(data, accumulate=2), tmp_path / "run")  # the optimiser's step comes with the second
    batch = next(trainer.data.batches(trainer.config, 0, 0, 0, 1))
    assert len(trainer.objective.terms) > 1
    with Asked() as asked:
        line = trainer._step(batch, 2)
    trainer.close()
    assert line["losses"].keys() == {term.name for term in trainer.objective.terms}
    assert "grad_norm" not in line
    assert all(p.grad is not None for name, p in trainer.trained.items() if "classifier" in name)
    assert asked.count == 1  # whether the batch is complete, of a mask that lies on the CPU


@pytest.mark.parametrize("scale", [65536.0, 1.0, 0.5])
def test_fp16_gives_up_where_no_scale_helps(data: Path, tmp_path: Path, scale: float) -> None:
    """A scaler skips a step whose gradient overflows and halves its scale; without end it would train nothing."""
    trainer = Trainer(settings(data), tmp_path / "run")
    trainer.accelerator.scaler = SimpleNamespace(get_scale=lambda: scale)
    for parameter in trainer.trained.values():
        parameter.grad = torch.full_like(parameter, torch.inf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.optimizer, "step", lambda: None)  # which a scaler skips
        if scale < 1:
            with pytest.raises(UserError, match=r"the gradient is not finite .* use train\.precision fp32"):
                trainer._update(1e-3)
        else:
            assert trainer._update(1e-3) == 0  # JSON has no infinity
    trainer.close()
