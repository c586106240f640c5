"""One run of a study, in a process of its own: ``dmpt train``, ``dmpt evaluate``, and a file of what was found.

Beside the run folder lies a file of settings, ``seed-0.yaml`` beside ``seed-0``: the run is made of that alone.
"""

import json
import os
import signal
import statistics
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmpt.base.errors import Diverged, UserError
from dmpt.base.files import write_text
from dmpt.base.memory import keep_freed_memory
from dmpt.base.stopping import Interrupted, stoppable
from dmpt.base.yaml import load
from dmpt.settings.config import Config
from dmpt.settings.values import from_dict

if TYPE_CHECKING:
    from dmpt.retrieval.embeddings import Embeddings
    from dmpt.retrieval.protocols import Labels

_PATIENCE = 60.0  # seconds in which a run whose study is gone should have saved; another signal ends it unsaved
_RESULT = "result.json"


def settings_file(out: Path) -> Path:
    """What the run in ``out`` is made of."""
    return out.with_name(f"{out.name}.yaml")


def work(config: Config, out: Path, missing: bool = False, tested: str = "") -> None:
    """Train, going on where an earlier attempt was stopped; evaluate; write what was found into the run folder.

    Args:
        config: the settings; with ``train.select val`` the test split is not read, and divergence is a finding.
        out: the run folder.
        missing: whether it is also tested with modalities missing.
        tested: folder of the data whose test split is tested; empty = that of its own data.

    Raises:
        UserError: as ``dmpt train`` and ``dmpt evaluate``.
    """
    from dmpt.base.environment import environment
    from dmpt.evaluation.conditions import Conditions
    from dmpt.evaluation.evaluate import PRIVATE, by_query, evaluate, everyone
    from dmpt.retrieval.calibration import verification
    from dmpt.retrieval.metrics import MEASURES
    from dmpt.retrieval.metrics import evaluate as score
    from dmpt.training.trainer import Trainer

    trainer = Trainer(config, out, resume=True)
    numbers: dict[str, Any] = {}
    per_query: dict[str, list[Any]] = {"pids": [], "average_precision": []}
    try:
        trainer.fit()
    except Diverged as error:
        if config.train.select != "val":
            raise
        numbers = {**dict.fromkeys(MEASURES, 0.0), "diverged": str(error)}
    if config.train.select == "val" and not numbers:
        seen = trainer.seen or trainer.look()  # a finished run that is opened again has not looked yet
        metrics, pairs = score(*seen, trainer.data.protocol), verification(*seen)
        numbers = metrics.to_dict() | {"verification": None if pairs is None else asdict(pairs)}
        per_query = by_query(metrics, seen.query_labels)
    elif not numbers:
        conditions = Conditions(root=tested or config.data.root)
        evaluation = evaluate(out, conditions, without="all" if missing else None)
        evaluation.save()
        numbers, per_query = evaluation.to_dict(), by_query(evaluation.metrics, evaluation.seen.query_labels)
        numbers["threshold"] = _threshold(*everyone((evaluation.query, evaluation.gallery), evaluation.seen))
    own = {"step": trainer.progress.step, "seed": config.train.seed, **environment()}
    where = {key: value for key, value in numbers.get("provenance", own).items() if key not in PRIVATE}
    trained = trainer.network.trained_count if config.train.epochs else 0
    study = {"trained": trained, "backbone_sha256": trainer.model.tower.sha256}
    per_query["average_precision"] = [v if v is None else round(v, 4) for v in per_query["average_precision"]]
    content = {"numbers": {**numbers, "study": study, "provenance": where}, "per_query": per_query}
    write_text(out / _RESULT, json.dumps(content) + "\n")


def _threshold(items: "Embeddings", labels: "Labels") -> dict[str, Any] | None:
    """What scores are worth to a threshold, percent; None where the identities are too few to say.

    Returns:
        ``achieved``: what an FMR of 1 % that some identities give comes to with others; ``dir``: by FPIR in percent,
        how many of those who are in a gallery are found at rank 1.
    """
    from dmpt.retrieval.asked import achieved
    from dmpt.retrieval.openset import open_set

    try:
        rates, searches = achieved(items, labels), open_set(items, labels, ranks=[1])
    except UserError:
        return None
    found = {f"{100 * search.far:g}": search.mean for search in searches}
    return {"achieved": None if rates is None else asdict(rates), "dir": found}


def found_in(out: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Numbers and those of each query of a run that has ended well, with its time and memory."""
    from dmpt.training.log import read_log

    try:
        content = json.loads((out / _RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: the run left no result ({error}); run again") from error
    log = read_log(out)
    peaks = [line["peak_memory_bytes"] for line in log if line.get("peak_memory_bytes")]  # Windows tells none
    seconds = [line["epoch_seconds"] for line in log if "epoch_seconds" in line]
    content["numbers"]["study"] |= {
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "seconds_per_step": min((line["step_seconds"] for line in log if "step_seconds" in line), default=None),
        "peak_memory_bytes": max(peaks, default=None),
    }
    return content["numbers"], content["per_query"]


def _stop_with(parent: int) -> None:
    """Save and leave when the process that started this one is gone, however and however early it went."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        while True:  # what is being imported or freed just then may swallow one
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_PATIENCE)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Make the run of ``OUT PARENT TESTED [missing]``; exit code 2 with a line of what the user can mend."""
    folder, parent, tested, *missing = sys.argv[1:]
    out = Path(folder)
    keep_freed_memory()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the study's way to stop it, whatever the study was started with
    try:
        with stoppable():
            _stop_with(int(parent))
            config = from_dict(load(settings_file(out).read_text(encoding="utf-8")))
            work(config, out, bool(missing), tested)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except Interrupted as error:
        raise SystemExit(128 + error.number) from None
