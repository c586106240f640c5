"""Settings that contradict each other are refused before anything is read."""

from collections.abc import Iterator
from dataclasses import asdict

from dmpt.base.errors import UserError
from dmpt.settings.config import Config
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.values import checked


def check(config: Config) -> None:
    """Refuse settings that lie out of their ranges (they stand at the fields) or contradict each other.

    Raises:
        UserError: names the setting, its value and what would do.
    """
    checked(Config, asdict(config))
    for holds, otherwise in _rules(config):
        if not holds:
            raise UserError(otherwise)


def _rules(config: Config) -> Iterator[tuple[object, str]]:
    """What must be true, and what is said where it is not."""
    data, semantic, modality, bind, loss = config.data, config.semantic, config.modality, config.bind, config.loss
    exchange = bind.depth > 0 and bind.external
    yield (
        list(data.modalities) == [name for name in MODALITIES if name in data.modalities] != [],
        f"data.modalities is {list(data.modalities)}; name at least one of {', '.join(MODALITIES)}, in this order",
    )
    yield (
        data.value_range == "auto" or data.value_range[0] < data.value_range[1],
        f"data.value_range is {list(data.value_range)}; give two numbers, the first below the second, or auto",
    )
    yield (
        data.pad < min(data.size),
        f"data.pad is {data.pad}, as much as images of {data.size[0]}x{data.size[1]} have; a crop could miss them",
    )
    yield (
        modality.length <= 3 or modality.source not in ("words", "permuted"),
        f"modality.length is {modality.length}, but the shortest modality phrase has 3 tokens; "
        "set modality.length to at most 3, or modality.source to learned or random",
    )
    yield (
        modality.length <= 1 or modality.source != "attribute",
        f"modality.source attribute is one token for RGB, so modality.length can be 1, not {modality.length}",
    )
    yield (
        loss.ce or loss.metric_weight or loss.centre,
        "loss.ce, metric_weight and centre are all 0; set one",
    )
    yield (
        loss.ce
        or config.backbone.tune != "frozen"
        or semantic.length
        or modality.length
        or bind.depth
        or config.missing.with_shared
        or config.text.loss == "identity"
        or (config.text.loss != "off" and config.backbone.projection == "trained"),
        "nothing that is trained has a part in the loss: no prompts, a frozen tower, loss.ce 0; set one of these",
    )
    yield (
        semantic.length or not exchange,
        "bind.external exchanges semantic prompts, but semantic.length is 0; "
        "set bind.depth 0, bind.external false, or semantic.length above 0",
    )
    yield (
        semantic.length or semantic.init == "uniform",
        "semantic.init is data, but semantic.length is 0; set a length above 0, or init uniform",
    )
    yield (
        list(bind.layers) == sorted(set(bind.layers)),
        f"bind.layers is {list(bind.layers)}; name layers once and in order, counted from 0",
    )
    yield (
        not bind.layers or (bind.depth and semantic.length),
        f"bind.layers is {list(bind.layers)}, but there is no interaction or no semantic prompt; "
        "set bind.depth and semantic.length above 0, or bind.layers []",
    )
    yield (
        exchange or config.feature == "cls",
        "feature cls+bind takes semantic prompts after the exchange, but there is none; "
        "set bind.depth above 0 and bind.external true, or feature cls",
    )
    yield (
        exchange or config.missing.absent == "nothing",
        "missing.absent learned stands in the bind, but there is none; "
        "set bind.depth above 0 and bind.external true, or missing.absent nothing",
    )
    yield (
        config.backbone.tune != "linear" or not bind.depth,
        f"backbone.tune linear probes the tower's own feature, but bind.depth is {bind.depth}; set it to 0",
    )
    yield (
        config.backbone.tune != "lora" or config.lora.rank or config.lora.rank_per_modality,
        "backbone.tune is lora, but lora.rank and lora.rank_per_modality are 0; set one of them",
    )
    yield (
        config.neck == "before" or not config.missing.with_shared,
        "neck is after, but the shared part is standardised on features before batch norm; "
        "set neck before, or missing.shared false",
    )
    yield (
        config.missing.view == "subset" or (config.missing.dropout > 0 and not bind.layers),
        "missing.view both compares a sample with what modality dropout leaves of it, after one pass of the tower; "
        "set missing.dropout above 0 and bind.layers [], or missing.view subset",
    )
    yield (
        config.missing.standardise == "seen" or config.missing.with_shared,
        "missing.standardise cut is for a shared part, and there is none; set missing.shared true, or standardise seen",
    )
    yield (
        not loss.align or len(data.modalities) > 1,
        f"loss.align compares modalities, but data.modalities is {list(data.modalities)}; name two, or set it to 0",
    )
