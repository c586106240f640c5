"""A study's rows on its data: their settings, and which of them the data can run."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmpt.base.errors import UserError
from dmpt.settings.config import Config
from dmpt.settings.rules import check
from dmpt.settings.values import from_dict, nest
from dmpt.study.definition import EQUAL, RANK, Row, Study
from dmpt.study.reading import placed, require


def config_of(flat: Mapping[str, Any]) -> Config:
    """Settings from dotted keys, checked."""
    config = from_dict(nest(flat))
    check(config)
    return config


def settings_of(study: Study, row: Row, data: str, base: Mapping[str, Any]) -> Config:
    """A row's settings in full, on the data's name and base, as dotted keys.

    Raises:
        UserError: this version does not know a choice, a value is of another type, or not valid on this base.
    """
    change = row.changes(data)
    with placed(f"{study.file}: row {row.name}"):
        if change.get(RANK) == EQUAL:
            change[RANK] = _equal_rank(config_of(base), config_of({**base, **change, RANK: 1}))
        config = config_of({**base, **change})
        require(config.init is None, "a study trains each run from its start; leave out init")
        return config


def _equal_rank(base: Config, lora: Config) -> int:
    """The rank of LoRA that trains as many parameters as the base, however many identities the data have."""
    from dmpt.paper.parameters import equal_lora_rank

    if lora.backbone.tune != "lora":
        raise UserError(f"{RANK} {EQUAL} needs backbone.tune lora")
    first, second = (equal_lora_rank(base, ids, lora) for ids in (10, 1000))
    if first != second:
        raise UserError(
            f"{RANK} {EQUAL}: here the rank depends on the number of identities, for the row has other heads than the "
            "base, or the base has text.loss identity; give a number"
        )
    return first


def runnable(
    study: Study, data: str, base: Mapping[str, Any], only: Sequence[str] = ()
) -> tuple[list[tuple[Row, Config]], list[str]]:
    """The rows that this base can run, of those named ``only``, and why the others are left out, a line each.

    Without text in the base there are no rows with text. Two rows that come to the same settings are one: the
    reference, else the first.

    Raises:
        UserError: a row's settings are not valid, or a name of ``only`` is no row.
    """
    if unknown := [name for name in only if name not in [row.name for row in study.rows]]:
        raise UserError(
            f"--rows {unknown[0]}: {study.file} has no such row; there are {'; '.join(r.name for r in study.rows)}"
        )
    found: list[tuple[Row, Config]] = []
    left_out = []
    has_text = base["text.loss"] != "off"
    for row in sorted(study.rows, key=lambda row: row.name not in study.reference):
        if only and row.name not in only:
            continue
        config = settings_of(study, row, data, base)
        twin = next((other.name for other, its in found if its == config and other.lr == row.lr), None)
        projected = config.heads == "paper" != base["heads"]  # to the text's space
        if (config.modality.worded or config.text.loss != "off" or projected) and not has_text:
            left_out.append(f"{row.name}: needs text, and this backbone has none")
        elif twin is not None:
            left_out.append(f"{row.name}: the same settings as {twin} here")
        else:
            found.append((row, config))
    return sorted(found, key=lambda pair: study.rows.index(pair[0])), left_out
