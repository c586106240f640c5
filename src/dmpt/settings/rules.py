"""Settings that contradict each other or lie out of range are refused before anything is read."""

import math

from dmpt.base.errors import UserError
from dmpt.settings.config import Config
from dmpt.settings.modalities import MODALITIES


def check(config: Config) -> None:
    """Refuse settings that contradict each other or lie out of range.

    Raises:
        UserError: names the setting, its value and what would do.
    """
    data, semantic, modality, bind, train = config.data, config.semantic, config.modality, config.bind, config.train

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise UserError(message)

    require(
        not (modality.source in ("words", "permuted") and modality.length > 3),
        f"modality.length is {modality.length}, but the shortest modality phrase has 3 tokens; "
        "set modality.length to at most 3, or modality.source to learned or random",
    )
    known = [m for m in MODALITIES if m in data.modalities]
    require(
        list(data.modalities) == known != [],
        f"data.modalities is {list(data.modalities)}; name at least one of {', '.join(MODALITIES)}, in this order",
    )
    at_least: dict[str, tuple[float, float]] = {
        "data.size": (min(data.size), 1),
        "data.pad": (data.pad, 0),
        "data.workers": (data.workers, 0),
        "data.split_seed": (data.split_seed, 0),
        "backbone.blocks": (1 if config.backbone.blocks is None else config.backbone.blocks, 1),
        "backbone.grid": (min(config.backbone.grid or (1,)), 1),
        "backbone.projection_dim": (config.backbone.projection_dim, 1),
        "semantic.length": (semantic.length, 0),
        "modality.length": (modality.length, 0),
        "modality.width": (modality.width, 1),
        "lora.rank": (config.lora.rank, 0),
        "lora.rank_per_modality": (config.lora.rank_per_modality, 0),
        "lora.first_layer": (0 if config.lora.first_layer == "middle" else config.lora.first_layer, 0),
        "semantic.first_layer": (0 if semantic.first_layer == "middle" else semantic.first_layer, 0),
        "modality.first_layer": (modality.first_layer or 0, 0),
        "bind.depth": (bind.depth, 0),
        "bind.rank": (1 if bind.rank is None else bind.rank, 1),
        "text.tokens": (config.text.tokens, 1),
        "train.epochs": (train.epochs, 0),
        "train.seed": (train.seed, 0),
        "train.weight_decay": (train.weight_decay, 0),
        "train.ids": (train.ids, 2),
        "train.instances": (train.instances, 2),
        "train.accumulate": (train.accumulate, 1),
        "train.save_every": (train.save_every, 1),
        "train.eval_every": (train.eval_every, 1),
    }
    for name, (value, least) in at_least.items():
        require(value >= least, f"{name} is {value}; it must be at least {least}")
    shares = {
        "data.flip": data.flip,
        "data.erasing": data.erasing,
        "loss.smoothing": config.loss.smoothing,
        "missing.dropout": config.missing.dropout,
        "train.warmup": train.warmup,
        "train.warmup_from": train.warmup_from,
        "train.final": train.final,
        "train.val_share": train.val_share,
    }
    for name, share in shares.items():
        require(0 <= share <= 1, f"{name} is {share}; it must lie between 0 and 1")
    weights = {
        name: getattr(config.loss, name) for name in ("ce", "metric_weight", "centre", "text", "shared", "distil")
    }
    for name, weight in weights.items():
        require(0 <= weight < math.inf, f"loss.{name} is {weight}; it must be 0 or more")
    require(
        any(weights[name] for name in ("ce", "metric_weight", "centre")),
        "loss.ce, metric_weight and centre are all 0; set one",
    )
    require(
        0 < data.test_share < 1, f"data.test_share is {data.test_share}; it must lie between 0 and 1, both excluded"
    )
    for name, seed in (("train.seed", train.seed), ("data.split_seed", data.split_seed)):
        require(seed < 2**63, f"{name} is {seed}; it must be below 2^63")
    require(0 < train.lr < math.inf, f"train.lr is {train.lr}; it must be above 0")
    for name, values, least, said in (("mean", data.mean, -math.inf, "a number"), ("std", data.std, 0.0, "above 0")):
        within = values is None or all(least < value < math.inf for value in values)
        require(within, f"data.{name} is {values}; each value must be {said}")
    require(train.clip is None or train.clip > 0, f"train.clip is {train.clip}; it must be above 0, or null for none")
    require(
        data.value_range == "auto" or -math.inf < data.value_range[0] < data.value_range[1] < math.inf,
        f"data.value_range is {list(data.value_range)}; give two numbers, the first below the second, or auto",
    )
    require(
        data.pad < min(data.size),
        f"data.pad is {data.pad}, as much as images of {data.size[0]}x{data.size[1]} have; a crop could miss them",
    )
    moved = (
        *(config.backbone.tune != "frozen", semantic.length, modality.length, bind.depth, config.missing.with_shared),
        config.text.loss == "identity" or (config.text.loss != "off" and config.backbone.projection == "trained"),
    )
    require(
        config.loss.ce > 0 or any(moved),
        "nothing that is trained has a part in the loss: no prompts, a frozen tower, loss.ce 0; set one of these",
    )
    require(
        not (bind.depth and bind.external and not semantic.length),
        "bind.external exchanges semantic prompts, but semantic.length is 0; "
        "set bind.depth 0, bind.external false, or semantic.length above 0",
    )
    require(
        semantic.init == "uniform" or semantic.length > 0,
        "semantic.init is data, but semantic.length is 0; set a length above 0, or init uniform",
    )
    require(
        list(bind.layers) == sorted(set(bind.layers)) and min(bind.layers, default=0) >= 0,
        f"bind.layers is {list(bind.layers)}; name layers once and in order, counted from 0",
    )
    require(
        not bind.layers or (bind.depth > 0 and semantic.length > 0),
        f"bind.layers is {list(bind.layers)}, but there is no interaction or no semantic prompt; "
        "set bind.depth and semantic.length above 0, or bind.layers []",
    )
    require(
        0 < config.loss.metric_scale < math.inf, f"loss.metric_scale is {config.loss.metric_scale}; it must be above 0"
    )
    require(0 <= train.ema < 1, f"train.ema is {train.ema}; it must be at least 0 and below 1")
    require(
        config.feature == "cls" or (bind.depth > 0 and bind.external),
        "feature cls+bind takes semantic prompts after the exchange, but there is none; "
        "set bind.depth above 0 and bind.external true, or feature cls",
    )
    require(
        config.backbone.tune != "linear" or not bind.depth,
        f"backbone.tune linear probes the tower's own feature, but bind.depth is {bind.depth}; set it to 0",
    )
    require(
        config.backbone.tune != "lora" or config.lora.rank + config.lora.rank_per_modality > 0,
        "backbone.tune is lora, but lora.rank and lora.rank_per_modality are 0; set one of them",
    )
    require(0 < config.lora.scale < math.inf, f"lora.scale is {config.lora.scale}; it must be above 0")
    require(
        config.neck == "before" or not config.missing.with_shared,
        "neck is after, but the shared part is standardised on features before batch norm; "
        "set neck before, or missing.shared false",
    )
    require(
        config.missing.view == "subset" or (config.missing.dropout > 0 and not bind.layers),
        "missing.view both compares a sample with what modality dropout leaves of it, after one pass of the tower; "
        "set missing.dropout above 0 and bind.layers [], or missing.view subset",
    )
    require(
        config.missing.absent == "nothing" or (bind.depth > 0 and bind.external),
        "missing.absent learned stands in the bind, but there is none; "
        "set bind.depth above 0 and bind.external true, or missing.absent nothing",
    )
    require(
        not (modality.source == "attribute" and modality.length > 1),
        f"modality.source attribute is one token for RGB, so modality.length can be 1, not {modality.length}",
    )
