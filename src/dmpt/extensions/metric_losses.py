"""``loss.metric``: other losses in the place of the triplet loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.method.losses import batch_hard_triplet
from dmpt.settings.recipe import LossConfig


def metric_loss(config: LossConfig, features: Tensor, labels: Tensor) -> Tensor:
    """The metric loss of one head: features ``(B, D)``, labels ``(B,)`` of at least two identities.

    ``normalised``: features of one length cannot shrink together, by which the unnormalised form comes to rest at
    log 2. Their distances lie between 0 and 2, too little for a soft margin of scale 1: hence ``metric_scale``.
    """
    if config.metric == "normalised":
        return batch_hard_triplet(config.metric_scale * F.normalize(features, dim=-1), labels)
    if config.metric == "contrastive":
        return _contrastive(features, labels, config.metric_scale)
    return batch_hard_triplet(features, labels)


def _contrastive(features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. (2020), mean over the anchors; scale = 1 / temperature.

    For each anchor the mean over its positives of -log softmax among all others of the batch: it sees every positive
    and every negative, where the triplet loss sees the hardest of each. An anchor without a positive adds 0.
    """
    unit = F.normalize(features, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    log_ratio = (scale * unit @ unit.T).masked_fill(itself, -torch.inf).log_softmax(dim=-1)
    summed = log_ratio.masked_fill(~positive, 0).sum(dim=-1)
    return -(summed / positive.sum(dim=-1).clamp(min=1)).mean()
