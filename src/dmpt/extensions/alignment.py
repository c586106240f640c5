"""``loss.align``: what one modality shows of an identity should lie where another shows it.

A gallery whose items lack different modalities asks for that: an item seen by RGB alone meets one seen by TIR alone.
Not in the paper.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.method.modalities import MODALITY_COUNT, Features


def align(parts: Features, labels: Tensor, scale: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, L_out) between modalities alone.

    The anchor is what modality m shows of sample i, a unit vector u_mi. Candidates are what *other* modalities show of
    all samples, i among them; positives P those of its identity:

        L = mean over (m, i) of -1 / |P| sum over (n, j) in P of log softmax over the candidates of scale u_mi · u_nj

    A softmax over the anchor's own modality too would be led by it, in which the metric loss already works.

    Args:
        parts: a vector of each modality, ``(3, B, d)``, of any length; what is absent is not read.
        labels: class indices ``(B,)``.
        scale: the inverse of a temperature, above 0.

    Returns:
        The mean over the anchors that have a positive, in nats, at least 0; 0 where there are none.
    """
    count, x = len(labels), F.normalize(parts.masked().x, dim=-1).flatten(0, 1)  # (3 B, d)
    modality = torch.arange(MODALITY_COUNT, device=labels.device).repeat_interleave(count)
    own = labels.repeat(MODALITY_COUNT)
    candidate = modality[:, None] != modality[None, :]
    if parts.present is not None:
        here = parts.present.flatten()
        candidate = candidate & here[:, None] & here[None, :]
    positive = candidate & (own[:, None] == own[None, :])
    anchors = positive.any(dim=-1)
    if not anchors.any():
        return x.sum() * 0
    logits = (scale * x[anchors] @ x.T).masked_fill(~candidate[anchors], -torch.inf)
    wanted = positive[anchors]
    summed = logits.log_softmax(dim=-1).masked_fill(~wanted, 0).sum(dim=-1)
    return -(summed / wanted.sum(dim=-1)).mean()
