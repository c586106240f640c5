"""``dmpt check``."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_json
from dmpt.settings.config import Config, Layout
from dmpt.settings.numbers import Positive
from dmpt.settings.rules import check as check_settings

_Judged = Annotated[Config, {"data.protocol", "data.value_range", "data.test_share", "data.split_seed"}]
"""Settings that change what is found."""


def run(dir: Path, /, layout: Layout, config: _Judged, workers: Positive | None = None, json: bool = False) -> None:
    """Find what is wrong with a data set; exit code 1 when something is.

    Args:
        dir: The data set's folder, or its parent; of a manifest, also the file.
        layout: How files and names are arranged.
        config: settings of the data
        workers: Decoding threads; default: one per core.
        json: Print all findings as JSON.
    """
    from dmpt.data.check import check

    check_settings(config)
    try:
        report = check(layout, dir, replace(config.data, layout=layout), workers)
    except UserError as error:  # readers speak of the settings of training
        said = re.sub(r"\b(set|check) data\.root\b", r"\1 DIR", str(error))
        raise UserError(re.sub(r"\bcorrect data\.layout\b", "correct --layout", said)) from error
    if json:
        print_json(report.to_dict())
    else:
        print(*report.lines(), sep="\n")
    if report.errors:
        raise SystemExit(1)
