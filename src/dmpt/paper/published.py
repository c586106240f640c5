"""Other methods' published numbers (``published.csv``), and ours beside them.

Every row of the file names its source: a paper, or a README or log of a method's repository, most of them pictures read
by eye; ``second hand`` is somebody else's note that nobody here has checked. Trained parameters are those of the
parameter pictures in IDEA's and EDITOR's repositories and of the DMPT paper's Table 1, FLOPs those of DeMo's README.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmpt.base.errors import UserError
from dmpt.paper.cells import PRINTED
from dmpt.settings.modalities import MODALITIES

if TYPE_CHECKING:
    from dmpt.data.layouts import Layout

CASES = ("RGB", "NIR", "TIR", "RGB+NIR", "RGB+TIR", "NIR+TIR", "mean", "mismatched")
"""What can be missing at test, the mean of those six, and the mean over pairs of different subsets."""


@dataclass(frozen=True)
class Row:
    """One line of a table of results; mAP and ranks in percent, None = not printed."""

    dataset: str  # a layout's name; ``any`` for parameters alone
    method: str  # ``ours`` for a run of this package
    venue: str = ""
    backbone: str = ""  # what it adapts or trains
    missing: str = ""  # what is missing at test, one of ``CASES``; empty = nothing
    mAP: float | None = None
    rank1: float | None = None
    rank5: float | None = None
    rank10: float | None = None
    trained_M: float | None = None  # trained parameters in millions
    gflops: float | None = None  # per sample, as its authors count
    apart: str = ""  # why the number cannot stand beside others; empty = it can
    note: str = ""
    source: str = ""  # where it is printed; for ours, the adapter's folder


def published(dataset: str | None = None) -> list[Row]:
    """The rows of ``published.csv``, or one data set's alone."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        rows = [_row(line) for line in csv.DictReader(file)]
    return [row for row in rows if dataset in (None, row.dataset)]


def _row(line: dict[str, str]) -> Row:
    numbers = ("mAP", "rank1", "rank5", "rank10", "trained_M", "gflops")
    flags = {"test-time-trained": line.pop("test_time_trained"), "re-ranked": line.pop("reranked")}
    values: dict[str, Any] = {k: (float(v) if v else None) if k in numbers else v for k, v in line.items()}
    return Row(**values, apart=", ".join(name for name, flag in flags.items() if flag == "yes"))


def ours(run: Path) -> list[Row]:
    """A run's numbers: on complete samples, and those with modalities missing or re-ranked where it has them.

    Args:
        run: the folder that ``dmpt evaluate`` was given; also on data that it was not trained beside.

    Raises:
        UserError: it has not been evaluated, or a file is damaged.
    """
    files = [run / "metrics.json", *sorted(run.glob("metrics.*.json"))]
    found = [row for path in files if path.is_file() for row in _ours(run, path)]
    if not found:
        raise UserError(f"{run} holds no metrics.json; run dmpt evaluate {run} first")
    return found


def _ours(run: Path, path: Path) -> list[Row]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        where, apart = content["provenance"], _apart(content)
        backbone, source = _backbone(run, where["which"]), str(where.get("adapter", run))
        row = Row(where["data"], "ours", backbone=backbone, note=_note(where), source=source)
        return [
            replace(row, missing=missing, apart=", ".join([*mark, *apart]), **numbers)
            for missing, mark, numbers in _measured(content)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); run dmpt evaluate {run} again") from error


def _measured(content: dict[str, Any]) -> list[tuple[str, list[str], dict[str, Any]]]:
    """What was missing, why the number stands apart, the numbers."""
    found: list[tuple[str, list[str], dict[str, Any]]] = [("", [], content)]
    if reranked := content.get("k_reciprocal_reranked"):
        found.append(("", [f"re-ranked ({reranked['method']})"], reranked))
    without, used = content.get("missing", {}), _used(content)

    def case_of(name: str) -> str:
        """What is missing of all three: what a model does not read is missing in each of its cases."""
        return "+".join(m.upper() for m in MODALITIES if m not in used or m.upper() in name)

    cases = {case_of(name): case for name, case in without.get("cases", {}).items()}
    means = {"mean": without.get("mean"), "mismatched": without.get("any_to_any", {}).get("mismatched")}
    if len(used) < len(MODALITIES):
        means = {}  # over other cases than the published ones
    found += [(name, [], numbers) for name, numbers in (cases | means).items() if name in CASES and numbers]
    return [(name, mark, {key: float(numbers[key]) for key in PRINTED}) for name, mark, numbers in found]


def _used(content: dict[str, Any]) -> list[str]:
    """The modalities that the model reads."""
    return list(content["provenance"].get("modalities", MODALITIES))


def _note(where: dict[str, Any]) -> str:
    """Seed, step, code, and what was selected on."""
    commit = f"commit {where['commit']}" if where["commit"] else f"dmpt {where['dmpt']}"
    chosen = where.get("chosen_by", where["selected"] if where["which"] == "best" else "last step")
    best = "" if chosen == "last step" else f", best epoch on {chosen}"
    return f"seed {where['seed']}, step {where['step']}, {commit}{best}"


def _apart(content: dict[str, Any]) -> list[str]:
    """Why our number is not what the data set's numbers are; nothing when it is."""
    data, reasons = content["provenance"]["data"], [content["provenance"].get("apart", "")]
    facts = facts_of(data)
    if facts is not None and content["protocol"] != facts.protocol and "protocol" not in reasons[0]:
        reasons.append(f"protocol {content['protocol']}")
    if len(_used(content)) < len(MODALITIES):
        reasons.append(f"reads {'+'.join(_used(content)).upper()} alone")
    reasons += other_data(data, {"query": content["queries"], "gallery": content["gallery"]})
    if left_out := content["skipped"]:
        count = left_out if isinstance(left_out, int) else len(left_out)
        reasons.append(f"{count} missing or broken files left out")
    return [reason for reason in reasons if reason]


def other_data(dataset: str, samples: Mapping[str, int]) -> list[str]:
    """Splits, by how many samples were found, that are not of the published size: no part passes for the data set."""
    facts = facts_of(dataset)
    known = {} if facts is None else {split: count.samples for split, count in facts.known.items()}
    return [
        f"other data: {count} {split} samples, not {known[split]}"
        for split, count in samples.items()
        if known.get(split) not in (None, count)
    ]


def facts_of(dataset: str) -> "Layout | None":
    """What is known of a data set; None for what is no layout of ours."""
    from dmpt.data.layouts import DATASETS

    return DATASETS.get(dataset)


def _backbone(run: Path, which: str) -> str:
    """What the adapter's card says; empty when the card is no longer beside the numbers."""
    card = run / which / "config.json" if (run / which).is_dir() else run / "config.json"
    return str(json.loads(card.read_text(encoding="utf-8"))["config"]["backbone"]["name"]) if card.exists() else ""
