"""``dmpt export``."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dmpt.base.terminal import print_json, print_table
from dmpt.evaluation.conditions import Conditions
from dmpt.settings.config import Layout

if TYPE_CHECKING:
    from dmpt.export.export import Written


@dataclass(frozen=True)
class _Where:
    """Where things are.

    Attributes:
        root: Data folder whose test split it is compared with torch on. Default: drawn pictures.
        layout: How files and names are arranged, where they are others than those of training.
        weights: Weights file, when it has moved.
        which: Default: the one training selected.
        skip_broken: Leave out samples with unreadable images.
    """

    root: str | None = field(default=None, metadata={"flag": "data.root"})
    layout: Layout | None = field(default=None, metadata={"flag": "data.layout"})
    weights: str | None = field(default=None, metadata={"flag": "backbone.weights"})
    which: Literal["last", "best"] | None = None
    skip_broken: bool = False


def run(
    run: Path,
    /,
    out: Path,
    where: _Where,
    modality: Literal["rgb", "nir", "tir"] | None = None,
    input: Literal["normalised", "uint8", "pixels"] = "normalised",
    int8: bool = False,
    json: bool = False,
) -> None:
    """Write a trained model as ONNX, which needs no torch; nothing is written unless it says what torch says.

    Args:
        run: Run folder, adapter folder, or package:tiny.
        out: The file, for example model.onnx; recipes for other programs go into model.recipes beside it.
        where: where things are
        modality: Take this one alone, as trackers want it.
        input: What the file is fed: normalised floats; uint8 (batch, H, W, 3); or pixels, floats from 0 to 255.
        int8: Weights and activations in 8 bits; what that costs on the test split of --data.root is measured and kept.
        json: Print JSON.
    """
    from dmpt.export.export import export

    found = export(run, out, Conditions(**asdict(where)), modality=modality, input=input, int8=int8)
    if json:
        print_json(found.to_dict())
    else:
        _show(found)


def _show(found: "Written") -> None:
    own = found.found
    batches = "one sample at a time" if own.cost else "batches of any size"
    print(f"{found.path}: {found.bytes / 1e6:.1f} MB, takes {', '.join(own.inputs)} ({own.input}), {batches}")
    subsets = ", with every subset of modalities" if len(own.inputs) > 1 else ""
    exact = "in fp32 " if own.cost else ""
    print(f"{exact}at most {own.parity:.1g} from torch on {found.pictures}, in batches of 1, 2 and 7{subsets}")
    if own.cost is not None:
        cost = own.cost
        rows = [
            ["mAP %", f"{cost['mAP']:.2f}", f"{cost['mAP_int8']:.2f}"],
            ["rank-1 %", f"{cost['rank1']:.2f}", f"{cost['rank1_int8']:.2f}"],
        ]
        for rate in cost["rates"]:
            for name, what in (("fmr", "FMR"), ("tar", "TAR")):
                values = [f"{100 * rate[name + end]:.3g}" for end in ("", "_int8")]
                rows.append([f"{what} % above {rate['threshold']:.6f}", *values])
        print(f"int8 moves a vector by at most {100 * cost['moved']:.2g} % of what two samples lie apart")
        print(f"whoever runs it in batches changes numbers of a vector by up to {cost['batch']:.1g}; dmpt does not")
        print_table(f"what int8 costs on {cost['queries']} queries of {cost['data']}", ["", "fp32", "int8"], rows)
    if own.calibration is None:
        print("not calibrated: scores order items, and no more can be said (dmpt calibrate, then export again)")
    elif own.calibration.precision != own.precision:
        print(
            f"calibrated at precision {own.calibration.precision}: in {own.precision} no rates are known (dmpt "
            "calibrate --precision fp32, then export again)"
        )
    print(f"recipes: {', '.join(str(one) for one in found.recipes)}")
