"""What a run says of itself before it starts, and what its adapters say of it."""

from dataclasses import replace

from dmpt.adapter.folder import Card
from dmpt.data.layouts import DATASETS
from dmpt.evaluation.beside import fingerprint_of_test
from dmpt.extensions.assemble import Model
from dmpt.settings.config import Config
from dmpt.training.data import TrainingData
from dmpt.training.schedule import learning_rate
from dmpt.training.state import PLAN, PROCESSES, Progress


def lines(config: Config, data: TrainingData, model: Model) -> list[str]:
    """A line for each thing that a user should know before hours are spent."""
    recipe = config.train
    found = [
        *data.lines(),
        f"{model.tower.name}, {config.backbone.tune}; {model.network.trained_count:,} trained parameters",
        *model.tower.done,
    ]
    if config.modality.length:
        found.append(f"modality prompts from {config.modality.source}")
    projection = f", {config.backbone.projection} projection" if config.text.loss != "off" else ""
    found.append(f"text loss {config.text.loss}{projection}")
    if config.missing.dropout or config.missing.with_shared:
        part = "with" if config.missing.with_shared else "without"
        found.append(f"modality dropout {config.missing.dropout}, {part} a shared part")
    if model.tower.unused:
        found.append(f"not used of the weights file: {', '.join(model.tower.unused)}")
    if recipe.accumulate > 1:
        found.append(
            f"train.accumulate {recipe.accumulate}: the optimiser sees more samples per step, "
            f"but metric and centre loss still see {recipe.ids} x {recipe.instances} at a time"
        )
    return found


def resumed(config: Config, progress: Progress) -> list[str]:
    """Where a run goes on, and what it goes on with that it did not begin with."""
    if progress.epoch >= config.train.epochs:
        return [f"finished: all {progress.epoch} epochs are done; dmpt train goes on with more --train.epochs"]
    found = [f"going on after step {progress.step}"]
    for event in progress.news:
        if PLAN in event:
            before, now = event[PLAN]
            old, new = (learning_rate(progress.epoch / epochs, config) for epochs in event[PLAN])
            found.append(
                f"{PLAN} was {before}, now it is {now}: from here on the learning rate is that of {now} epochs "
                f"(now {new:.1e}, it was {old:.1e}); batches are those of any run, the result is not that of "
                f"{now} epochs from the start"
            )
        if PROCESSES in event:
            before, now = event[PROCESSES]
            found.append(f"{PROCESSES} was {before}, now it is {now}: equal up to rounding, no longer bit for bit")
    return found


def card_of(config: Config, data: TrainingData, model: Model) -> Card:
    """What travels with the trained tensors; ``data.mean`` and ``data.std`` are filled in."""
    return Card(
        config=replace(config, init=None),  # a path; the history tells
        ids=len(data.labels),
        backbone_sha256=model.tower.sha256,
        object=data.dataset.object,
        data={
            "name": data.dataset.name,
            "fingerprint": data.fingerprint,
            "test_fingerprint": fingerprint_of_test(data.dataset, config.data.modalities),
            "samples": len(data.records),
            "skipped": len(data.skipped),
        },
        licence=f"backbone weights: {model.tower.licence}; data: {DATASETS[config.data.layout].licence}",
    )
