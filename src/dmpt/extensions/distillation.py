"""``missing.view: both``: training sees each sample whole, and what modality dropout leaves of it.

The tower sees every image alone, so one pass of it serves both views. Each term is the mean of the two, and what a
sample is similar to with all its modalities is taught to what is left of it (``loss.distil``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.extensions.shared import similarity
from dmpt.method.losses import Objective
from dmpt.method.network import Output


def _distillation(whole: Output, subset: Output, scale: float) -> Tensor:
    """What a sample is similar to with all its modalities, taught to what is left of it.

    For each sample the Kullback-Leibler divergence between two softmaxes over the others of the batch: of cosines
    times ``scale`` between whole samples, which get no gradient, and between subsets, compared as retrieval compares
    them. Mean over the batch.
    """
    logits = [scale * similarity(view.features, view.also.get("shared"))[0] for view in (whole, subset)]
    itself = torch.eye(len(logits[0]), dtype=torch.bool, device=logits[0].device)
    teacher, student = (x[~itself].view(len(x), -1).log_softmax(dim=-1) for x in logits)
    return F.kl_div(student, teacher.detach(), log_target=True, reduction="batchmean")


def both_views(
    objective: Objective, whole: Output, subset: Output, labels: Tensor, weight: float, scale: float
) -> dict[str, Tensor]:
    """The terms of the loss, each the mean of the two views, and the distillation between them.

    Args:
        objective: the loss of one view.
        whole: output of the samples.
        subset: of what is left of each.
        labels: class indices ``(B,)``.
        weight: of the distillation; 0 leaves it out.
        scale: what its cosines are multiplied by.
    """
    of_whole, of_subset = objective(whole, labels), objective(subset, labels)
    terms = {name: (term + of_subset[name]) / 2 for name, term in of_whole.items()}
    if weight:
        terms["distil"] = weight * _distillation(whole, subset, scale)
    return terms
