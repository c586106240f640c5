"""``dmpt study``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.settings.config import Config
from dmpt.settings.numbers import Positive


def run(
    study: str | None = None,
    /,
    *,
    list: bool = False,
    on: str | None = None,
    seeds: Positive | None = None,
    rows: str | None = None,
    jobs: Positive = 1,
    tested: Path | None = None,
    dry_run: bool = False,
    table: bool = False,
    out: Path = Path("runs/studies"),
    results: Path = Path("results"),
    config: Config,
) -> None:
    """Run a table of the paper's argument on any data: what is missing is run, then table and plot are written.

    Args:
        study: Its name; see --list.
        list: Name all studies.
        on: Data: one of studies/data/ or configs/, or a file; default: the study's.
        seeds: How many, counted on from --train.seed.
        rows: Only these, separated by semicolons.
        jobs: Runs at a time; they share the cores.
        tested: Folder of another data set, of the same layout, whose test split is tested.
        dry_run: List the runs, with an estimate of their time.
        table: Only rebuild table, plot and provenance from results.
        out: Run folders go to OUT/STUDY/DATA/ROW.
        results: Numbers go to RESULTS/STUDY.
        config: settings
    """
    from dmpt.study.data import find_data
    from dmpt.study.definition import find, studies

    if list:
        for name in studies():
            print(f"{name:<16} {find(name).caption} ({find(name).mirrors})")
        return
    if study is None:
        raise UserError("give a study: dmpt study NAME; --list names them all")
    from dmpt.study import run as runs
    from dmpt.study.plan import make
    from dmpt.study.table import write

    chosen = find(study)
    data = find_data(on or chosen.data[0])
    out, results = out / chosen.name, results / chosen.name
    only = [name.strip() for name in (rows or "").split(";") if name.strip()]
    if rows is not None and not only:
        raise UserError("--rows is empty; name rows, separated by semicolons, or leave it out")
    if table:
        print(write(chosen, results))
    elif dry_run:
        plan = make(chosen, data.name, config, seeds=seeds or chosen.seeds, only=only, out=out)
        print(*runs.dry_run(plan, results), sep="\n")
    else:
        place: dict[str, Any] = {"out": out, "results": results, "tested": tested}
        page = runs.study(chosen, data, config, seeds=seeds, rows=only, jobs=jobs, **place)
        print(page.read_text(encoding="utf-8"))


def preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the study's data, and its own for all rows: what flags and files then override."""
    from dmpt.study.data import find_data
    from dmpt.study.definition import find

    if "study" not in given:
        return {}
    study = find(given["study"])
    return find_data(given.get("on") or study.data[0]).settings | study.base
