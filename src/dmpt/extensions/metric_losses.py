"""``loss.metric``: other losses in the place of the triplet loss."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.method.losses import batch_hard_triplet
from dmpt.settings.config import LossConfig


def normalised_triplet(features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """``batch_hard_triplet`` of L2-normalised features, distances times ``scale``.

    Features of one length cannot shrink together, by which the unnormalised form comes to rest at log 2.

    Args:
        features: ``(B, D)``.
        labels: ``(B,)``, at least two identities.
        scale: distances lie between 0 and 2, too little for a soft margin of scale 1.
    """
    return batch_hard_triplet(scale * F.normalize(features, dim=-1), labels)


def supervised_contrastive(features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. (2020), mean over the anchors.

    For each anchor the mean over its positives of -log softmax among all others of the batch: it sees every positive
    and every negative, where the triplet loss sees the hardest of each. An anchor without a positive adds 0.

    Args:
        features: ``(B, D)``.
        labels: ``(B,)``.
        scale: what cosines are multiplied by, 1 / temperature.
    """
    unit = F.normalize(features, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    log_ratio = (scale * unit @ unit.T).masked_fill(itself, -torch.inf).log_softmax(dim=-1)
    summed = log_ratio.masked_fill(~positive, 0).sum(dim=-1)
    return -(summed / positive.sum(dim=-1).clamp(min=1)).mean()


def metric_loss(config: LossConfig, features: Tensor, labels: Tensor) -> Tensor:
    """The metric loss of one head, in the form of ``loss.metric``.

    Args:
        config: form and scale.
        features: ``(B, D)``.
        labels: ``(B,)``, at least two identities.
    """
    if config.metric == "normalised":
        return normalised_triplet(features, labels, config.metric_scale)
    if config.metric == "contrastive":
        return supervised_contrastive(features, labels, config.metric_scale)
    return batch_hard_triplet(features, labels)
