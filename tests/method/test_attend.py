"""Attention gives the same by whichever way."""

import pytest
import torch
import torch.nn.functional as F

from dmpt.method.attention import attend
from small import error_of, seeded


@pytest.mark.parametrize("keys", [5, 9])
def test_training_and_inference_attend_alike(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[object] = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *of: (fused.append(of), kernel(*of))[1])
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64, generator=seeded(n)) for n in (5, keys, keys))
    expected = torch.softmax(q @ k.mT / 2, dim=-1) @ v
    assert error_of(attend(q, k, v), expected) < 1e-14
    assert len(fused) == 1
    assert error_of(attend(q.requires_grad_(), k, v), expected) < 1e-14
    assert len(fused) == 1
    with torch.inference_mode():
        assert error_of(attend(q, k, v), expected) < 1e-14
    assert len(fused) == 2
