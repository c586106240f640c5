"""The terms of Eq. 17, as pure functions (paper sections 3.2 and 3.5, Eq. 5, 6, 17).

Shapes: B triplets of a batch, D feature width, C identities, d width of the text space, 3 modalities.

Triplets may lack modalities: ``present``, bool ``(3, B)``, says which slots count, None = all. A mean is then over the
slots that exist, and an absent slot is not read.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.extensions.shared import similarity
from dmpt.method.heads import rows
from dmpt.method.network import Output
from dmpt.settings.config import Config, LossConfig


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """L_ce of one head with label smoothing (Szegedy et al. 2016).

    Args:
        logits: ``(B, C)``.
        labels: class indices ``(B,)``.
        smoothing: share of the target spread over all classes, in [0, 1].
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def batch_hard_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """L_tri of one head: soft-margin batch-hard triplet loss (Hermans et al. 2017).

    For each anchor log(1 + exp(d(hardest positive) - d(hardest negative))), Euclidean distances of unnormalised
    features, mean over the anchors. An anchor without another image of its identity has distance 0 to its positive.

    Args:
        features: ``(B, D)``.
        labels: ``(B,)``, at least two identities.
    """
    # Not through the matrix product: |a|² + |b|² - 2ab loses the small distances of large features.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None, :]
    hardest_positive = distance.masked_fill(~same, -torch.inf).amax(dim=1)
    hardest_negative = distance.masked_fill(same, torch.inf).amin(dim=1)
    return F.softplus(hardest_positive - hardest_negative).mean()


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
    """L_tri of one head, in the form of ``loss.metric``.

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


def centre(
    features: Tensor,
    labels: Tensor,
    reduction: Literal["mean", "sum"] = "mean",
    normalise: bool = False,
    present: Tensor | None = None,
) -> Tensor:
    """L_mae-c: L1 distance of each feature to the centre of its identity in the batch.

    Within each modality, then mean over samples and modalities.

    Args:
        features: ``(3, B, D)``.
        labels: ``(B,)``.
        reduction: over D.
        normalise: L2-normalise the features first.
        present: which slots count; a centre is the mean of these.
    """
    if present is not None:
        features = features.masked_fill(~present[..., None], 0)
    if normalise:
        features = F.normalize(features, dim=-1)
    same = (labels[:, None] == labels[None, :]).to(features.dtype)
    if present is not None:
        same = same * present[:, None, :]  # (3, B, B)
    centres = (same / same.sum(dim=-1, keepdim=True).clamp(min=1)) @ features  # (3, B, D), each sample's own centre
    distance = (features - centres).abs()
    distance = distance.mean(dim=-1) if reduction == "mean" else distance.sum(dim=-1)
    return distance.mean() if present is None else distance[present].mean()


def text_modality(z: Tensor, text: Tensor, positive: Tensor, scale: float, present: Tensor | None = None) -> Tensor:
    """L_con with the fixed prompts as classes: -log softmax of the own modality's and object's prompt.

    Args:
        z: projected image features ``(3, B, d)``.
        text: features of all fixed prompts ``(6, d)``.
        positive: for each modality the row of ``text`` that describes it, ``(3,)``.
        scale: 1 / tau.
        present: which slots count.
    """
    logits = scale * F.normalize(z, dim=-1) @ F.normalize(text, dim=-1).T  # (3, B, 6)
    return _over_slots(logits, positive.repeat_interleave(z.shape[1]), present)


def text_identity(z: Tensor, text: Tensor, labels: Tensor, scale: float, present: Tensor | None = None) -> Tensor:
    """L_con with one text per identity and modality (N of Eq. 5 = identities), -log softmax, mean over modalities.

    Args:
        z: projected image features ``(3, B, d)``.
        text: ``(3, C, d)``.
        labels: ``(B,)``.
        scale: 1 / tau.
        present: which slots count.
    """
    logits = scale * F.normalize(z, dim=-1) @ F.normalize(text, dim=-1).transpose(-1, -2)  # (3, B, C)
    return _over_slots(logits, labels.repeat(len(z)), present)


def _over_slots(logits: Tensor, targets: Tensor, present: Tensor | None) -> Tensor:
    """Cross-entropy of ``(3, B, classes)`` against ``(3 B,)``, mean over the slots that count."""
    if present is None:
        return F.cross_entropy(logits.flatten(0, 1), targets)
    return F.cross_entropy(logits[present], targets[present.flatten()])


def text_literal(z: Tensor, text: Tensor, identities: int, scale: float, present: Tensor | None = None) -> Tensor:
    """Eq. 5-6 as printed: a sum of ratios, without a logarithm.

    The prompts are fixed, so the N texts of a modality are one and the same vector: the ratio is 1 / N, the loss
    3 B / N, and its gradient zero. Kept to show just that.

    Args:
        z: projected image features ``(3, B, d)``.
        text: the prompt of each modality ``(3, d)``.
        identities: N.
        scale: 1 / tau.
        present: which slots count.
    """
    cosine = (F.normalize(z, dim=-1) * F.normalize(text, dim=-1)[:, None]).sum(dim=-1)  # (3, B)
    logits = (scale * cosine)[..., None].expand(-1, -1, identities)
    ratios = logits.softmax(dim=-1)[..., 0]
    return (ratios if present is None else ratios[present]).sum()


def distillation(whole: Output, subset: Output, scale: float) -> Tensor:
    """What a triplet is similar to with all its modalities, taught to what is left of it; not in the paper.

    For each triplet the Kullback-Leibler divergence between two softmaxes over the others of the batch: of cosines
    times ``scale`` between whole triplets, which get no gradient, and between subsets, compared as retrieval compares
    them. Mean over the batch.

    Args:
        whole: output of the triplets.
        subset: of what is left of each.
        scale: what cosines are multiplied by.
    """
    logits = [scale * similarity(view.features, view.present, view.shared)[0] for view in (whole, subset)]
    itself = torch.eye(len(logits[0]), dtype=torch.bool, device=logits[0].device)
    teacher, student = (x[~itself].view(len(x), -1).log_softmax(dim=-1) for x in logits)
    return F.kl_div(student, teacher.detach(), log_target=True, reduction="batchmean")


@dataclass(frozen=True)
class TextTargets:
    """What the fixed prompts give the text loss.

    Attributes:
        features: of the six prompts, modality-major, person before vehicle, ``(6, d)``.
        positive: each modality's own row for the data set's object, ``(3,)``.
        scale: 1 / tau, the tower's own logit scale.
    """

    features: Tensor
    positive: Tensor
    scale: float

    def to(self, device: torch.device) -> "TextTargets":
        """On another device."""
        return TextTargets(self.features.to(device), self.positive.to(device), self.scale)


def objective(
    config: Config,
    output: Output,
    heads: dict[str, tuple[Tensor, Tensor]],
    labels: Tensor,
    text: TextTargets | None = None,
    identity_texts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of Eq. 17; their sum is the loss.

    Cross-entropy and triplet are means over the heads, to which a head that saw no triplet adds 0. The head of the
    shared part has a term of its own, so that the others weigh what they weigh without it. A term whose weight is 0 is
    absent.

    Args:
        config: chooses weights and readings.
        output: of the network.
        heads: feature and logits by head.
        labels: class indices ``(B,)``.
        text: for the text losses.
        identity_texts: ``(3, C, d)``, for the text loss ``identity``.
    """
    weights, present = config.loss, output.present
    terms: dict[str, Tensor] = {}
    ce: list[Tensor] = []
    triplet: list[Tensor] = []
    for name, (feature, logits) in heads.items():
        if name == "shared":
            continue
        if len(feature) == 0:
            ce.append(logits.sum())  # 0, and its gradient is 0
            triplet.append(feature.sum())
            continue
        own = rows(name, present, config.data.modalities)
        seen = labels if own is None else labels[own]
        ce.append(cross_entropy(logits, seen, weights.smoothing))
        triplet.append(metric_loss(weights, feature, seen))
    if weights.ce:
        terms["ce"] = weights.ce * torch.stack(ce).mean()
    if weights.triplet:
        terms["triplet"] = weights.triplet * torch.stack(triplet).mean()
    if weights.centre:
        form = weights.centre_reduction, weights.centre_normalise
        terms["centre"] = weights.centre * centre(output.features, labels, *form, present)
    if "shared" in heads and weights.shared:
        feature, logits = heads["shared"]
        of_ce = weights.ce * cross_entropy(logits, labels, weights.smoothing)
        terms["shared"] = weights.shared * (of_ce + weights.triplet * metric_loss(weights, feature, labels))
    if config.text.loss != "off" and weights.text:
        identities = next(iter(heads.values()))[1].shape[1]
        terms["text"] = weights.text * _text(config, output, labels, text, identity_texts, identities)
    return terms


def _text(
    config: Config,
    output: Output,
    labels: Tensor,
    text: TextTargets | None,
    identity_texts: Tensor | None,
    identities: int,
) -> Tensor:
    assert text is not None
    assert output.z is not None
    if config.text.loss == "identity":
        assert identity_texts is not None
        return text_identity(output.z, identity_texts, labels, text.scale, output.present)
    if config.text.loss == "literal":
        return text_literal(output.z, text.features[text.positive], identities, text.scale, output.present)
    return text_modality(output.z, text.features, text.positive, text.scale, output.present)
