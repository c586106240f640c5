"""``dmpt params``."""

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_json, print_table
from dmpt.settings.config import Config
from dmpt.settings.numbers import Positive


def run(config: Config, ids: Positive | None = None, json: bool = False) -> None:
    """Count parameters: component, shape, frozen or trained. Needs no weights.

    Args:
        config: settings
        ids: Training identities; default: the data set's own.
        json: Print JSON.
    """
    from dmpt.data.layouts import DATASETS, Count
    from dmpt.paper.parameters import count_parameters, equal_lora_rank

    ids = ids or DATASETS[config.data.layout].known.get("train", Count()).ids
    if ids is None:
        raise UserError(f"the number of training identities of {config.data.layout} is not known; give --ids")
    result = count_parameters(config, ids)
    prompted = config.semantic.length or config.modality.length or config.bind.depth
    if config.backbone.tune == "frozen" and prompted:
        result["equal_lora_rank"] = equal_lora_rank(config, ids)
    if json:
        print_json(result)
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
