"""Which data a run was trained beside, and what becomes of numbers on others: they are kept apart."""

from collections.abc import Sequence

from dmpt.adapter.folder import Card
from dmpt.data.layouts import DATASETS
from dmpt.data.missing import Subset, restrict
from dmpt.data.records import Dataset, Record, fingerprint, same_data
from dmpt.data.split import fewer
from dmpt.settings.config import DataConfig


def trained_on(dataset: Dataset, data: DataConfig) -> Sequence[Record]:
    """Training samples with the modalities in use, of ``train_share`` of the identities, before any are held out."""
    return fewer(restrict(dataset.train, data.modalities), data.train_share, data.split_seed)


def fingerprint_of_test(dataset: Dataset, modalities: Subset) -> str | None:
    """Of query and gallery as they are listed, before an image is read; None where there are none."""
    listed = [*restrict(dataset.query, modalities), *restrict(dataset.gallery, modalities)]
    return fingerprint(listed) if listed else None


def trained_beside(card: Card, dataset: Dataset) -> bool | None:
    """Whether these are the data that an adapter was trained beside; None where its card cannot tell.

    Cards from before fingerprints of the test split were kept know the training samples, as far as all of the split
    were trained on. So do those of a run without test images.
    """
    modalities = card.config.data.modalities
    then, now = card.data.get("test_fingerprint"), fingerprint_of_test(dataset, modalities)
    if then and now:
        return same_data(then, now)
    train = trained_on(dataset, card.config.data)
    if not train or card.config.train.select == "val" or card.data.get("skipped"):
        return None
    return same_data(card.data.get("fingerprint", ""), fingerprint(train))


def why_apart(card: Card, dataset: Dataset, chosen: bool) -> str:
    """Why numbers on these data are not those of the run; empty where they are.

    Args:
        card: of the adapter, its settings those of training.
        dataset: what it is judged on.
        chosen: whether the user named other data than the run remembers, which decides where its card cannot tell.
    """
    own = trained_beside(card, dataset)
    if own is False or (own is None and chosen):
        said = f"{'' if own is False else 'maybe '}other data than it was trained beside"
        return said + (f", {dataset.object}s and not {card.object}s" if dataset.object != card.object else "")
    data = card.config.data
    usual = data.protocol or DATASETS[data.layout].protocol
    return "" if dataset.protocol == usual else f"protocol {dataset.protocol}, not its own {usual}"
