"""``dmpt params``."""

import json

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from dmpt.base.terminal import print_table
from dmpt.verbs.parser import Parser, add_settings, config_of


def add(parser: Parser) -> None:
    """Count parameters: component, shape, frozen or trained. Needs no weights."""
    add_settings(parser)
    parser.add_argument(
        "--ids", type=PositiveInt, default=None, help="Training identities; default: the data set's own."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(arguments: Namespace) -> None:
    """Run the verb ``params``."""
    from dmpt.base.errors import UserError
    from dmpt.data.layouts import DATASETS, Count
    from dmpt.paper.parameters import count_parameters, equal_lora_rank

    config = config_of(arguments)
    ids = arguments.ids or DATASETS[config.data.layout].known.get("train", Count()).ids
    if ids is None:
        raise UserError(f"the number of training identities of {config.data.layout} is not known; give --ids")
    result = count_parameters(config, ids)
    prompted = config.semantic.length or config.modality.length or config.bind.depth
    if config.backbone.tune == "frozen" and prompted:
        result["equal_lora_rank"] = equal_lora_rank(config, ids)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    rows = [
        [c["name"], c["shape"], f"{c['count']:,}", "trained" if c["trained"] else "frozen"]
        for c in result["components"]
    ]
    print_table(f"{config.backbone.name}, {ids} identities", ["component", "shape", "count", ""], rows)
    print(f"trained    {result['trained']:>13,}")
    print(f"in memory  {result['in_memory']:>13,}")
    print(f"paper's ratio: trained / (three towers {result['towers']:,} + trained) = {result['paper_ratio']:.2f} %")
    if "equal_lora_rank" in result:
        print(f"LoRA instead that trains as many or nearly: lora.rank {result['equal_lora_rank']}")
