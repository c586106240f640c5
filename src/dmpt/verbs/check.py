"""``dmpt check``."""

import json
import re
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from dmpt.base.errors import UserError
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.rules import check as check_settings
from dmpt.verbs.parser import Parser

#: Settings of the data that change what is found.
SETTINGS = {"layout", "protocol", "value_range", "test_share", "split_seed"}


def add(parser: Parser) -> None:
    """Find what is wrong with a data set; exit code 1 when something is."""
    parser.add_argument("dir", type=Path, help="The data set's folder, or its parent; of a manifest, also the file.")
    layout = next(field for field in fields(DataConfig) if field.name == "layout")
    parser.add_argument("--layout", type=layout.type, required=True, help="How files and names are arranged.")
    skip = {field.name for field in fields(DataConfig)} - SETTINGS | {"layout"}
    parser.add_class_arguments(DataConfig, "data", skip=skip)
    parser.add_argument(
        "--workers",
        type=PositiveInt,
        default=None,
        help="Decoding threads; default: one per core.",
    )
    parser.add_argument("--json", action="store_true", help="Print all findings as JSON.")


def run(arguments: Namespace) -> None:
    """Run the verb ``check``."""
    from dmpt.data.check import check

    check_settings(Config(data=arguments.data))
    try:
        report = check(arguments.layout, arguments.dir, arguments.data, arguments.workers)
    except UserError as error:  # readers speak of the settings of training
        said = re.sub(r"\b(set|check) data\.root\b", r"\1 DIR", str(error))
        raise UserError(re.sub(r"\bcorrect data\.layout\b", "correct --layout", said)) from error
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(*report.lines(), sep="\n")
    if report.errors:
        raise SystemExit(1)
