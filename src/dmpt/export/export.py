"""``dmpt export``: a trained model as one file, whose numbers are torch's, or no file."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dmpt.adapter.calibration import load as load_calibration
from dmpt.adapter.files import TENSORS, adapter_folder
from dmpt.adapter.folder import load_card, network_of
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, sha256
from dmpt.base.terminal import warn
from dmpt.data.images import Pixels, read_record
from dmpt.data.records import Dataset, Record
from dmpt.embed.embedder import Embedder
from dmpt.evaluation.conditions import USUAL, Conditions
from dmpt.evaluation.opened import listed, test_records
from dmpt.export.cost import measure, quantise
from dmpt.export.graph import Graph, write_onnx
from dmpt.export.parity import SAMPLES, difference, drawn, moved
from dmpt.export.recipes import recipes_beside
from dmpt.extensions.lora import fold_lora, merge_lora
from dmpt.extensions.shared import shared_part
from dmpt.runtime import onnx
from dmpt.runtime.exported import Exported, GraphEncoder, Input, load, write
from dmpt.runtime.runtime import Encode, Runtime, need
from dmpt.runtime.torch import Encoder
from dmpt.settings.modalities import MODALITIES

_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, eq=False)
class Written:
    """An exported file.

    Attributes:
        path: of it.
        recipes: for other programs, beside it.
        bytes: how large it is.
        found: what it says of itself.
        pictures: what it was compared with torch on.
    """

    path: Path
    recipes: list[Path]
    bytes: int
    found: Exported
    pictures: str

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON knows."""
        own = self.found
        return {
            "out": str(self.path),
            "bytes": self.bytes,
            "recipes": [str(one) for one in self.recipes],
            "inputs": list(own.inputs),
            "input": own.input,
            "precision": own.precision,
            "adapter": own.adapter,
            "calibrated": own.calibration is not None and own.calibration.precision == own.precision,
            "difference_from_torch": own.parity,
            "compared_on": self.pictures,
            "int8": own.cost,
        }


def export(
    run: str | Path,
    out: str | Path,
    conditions: Conditions = USUAL,
    *,
    modality: Literal["rgb", "nir", "tir"] | None = None,
    input: Input = "normalised",
    int8: bool = False,
) -> Written:
    """Write a trained model as ONNX, once it has been compared with torch.

    Args:
        run: run folder or adapter folder, or ``package:tiny``.
        out: the file, which ends in ``.onnx``; recipes for other programs go into a folder beside it.
        conditions: where weights and data are. Without ``root`` it is compared on drawn pictures.
        modality: a graph that takes this one alone.
        input: what the graph is fed.
        int8: eight bits; what that costs is measured on the test split of ``conditions.root``.

    Raises:
        UserError: a package is missing, the model cannot be exported, or the file would say other numbers than torch.
    """
    out, place = expanded(out), expanded(run)
    if out.suffix != ".onnx":
        raise UserError(f"--out {out} must end in .onnx, by which dmpt knows such a file")
    if any(find_spec(name) is None for name in _NEEDED):
        raise need(" and ".join(_NEEDED), "onnx")
    folder = adapter_folder(place, conditions.which)
    card = load_card(folder)
    data = card.config.data
    if modality is not None and modality not in data.modalities:
        raise UserError(f"--modality is {modality}, but the model reads {', '.join(data.modalities)}")
    if int8 and conditions.root is None:
        raise UserError("--int8 is measured on data, not guessed; give --data.root")
    inputs = (modality,) if modality else tuple(data.modalities)
    tested = None
    if conditions.root is not None:
        now, dataset, _ = listed(folder, card, conditions)
        (query, gallery), _ = test_records(dataset, replace(now, modalities=inputs), conditions.skip_broken)
        tested = _Tested(query, gallery, dataset)
    network, _ = network_of(folder, card, conditions.weights, merge=False)
    folded = copy.deepcopy(network)
    fold_lora(folded.backbone)
    merge_lora(network.backbone)
    graph, encoder, part = Graph(folded, data, inputs, input), Encoder(network), shared_part(network)
    calibration = load_calibration(folder)
    found = Exported(
        adapter=sha256(folder / TENSORS) if calibration is None else calibration.adapter,
        backbone=card.backbone_sha256,
        data=data,
        inputs=inputs,
        input=input,
        precision="fp32",
        object=card.object,
        licence=card.licence,
        parity=0.0,
        standardisation=None if part is None else part.standardisation().numpy(),
        calibration=calibration,
    )
    samples, pictures = _pictures(tested, found)
    with tempfile.TemporaryDirectory(prefix="dmpt-export-") as scratch:
        bare, exact = Path(scratch) / "graph.onnx", Path(scratch) / "exact.onnx"
        write_onnx(graph, data.size, bare)
        write(bare.read_bytes(), replace(found, calibration=None), exact)
        runtime = load(exact, "fp32", "onnx")
        found = replace(found, parity=difference(found, runtime.encode, encoder, samples))
        if tested is not None and int8:
            bare, found = _in_int8(bare, found, runtime, encoder, tested, samples)
        with recipes_beside(out, found, *_widths(found, runtime.encode)) as recipes:
            write(bare.read_bytes(), found, out)
    return Written(out, recipes, out.stat().st_size, found, pictures)


class _Tested(NamedTuple):
    """Samples of the test split whose pictures can be read, and what they are of."""

    query: Sequence[Record]
    gallery: Sequence[Record]
    dataset: Dataset


def _pictures(tested: _Tested | None, found: Exported) -> tuple[Sequence[Mapping[str, Pixels]], str]:
    """What to compare on, and what that is called: test samples that have all that the graph takes, else drawn ones."""
    if tested is not None:
        whole = [record for record in tested.gallery if {*found.inputs} <= record.paths.keys()]
        if len(whole) > 1:
            chosen = whole[:: max(1, len(whole) // SAMPLES)][:SAMPLES]
            return [read_record(one, found.data.black_and_white) for one in chosen], f"{len(chosen)} test samples"
        warn(f"no two test samples have all of {', '.join(found.inputs)}; compared with torch on drawn pictures")
    return drawn(found), f"{SAMPLES} drawn samples"


def _in_int8(
    bare: Path,
    found: Exported,
    exact: Runtime,
    reference: Encode,
    tested: _Tested,
    samples: Sequence[Mapping[str, Pixels]],
) -> tuple[Path, Exported]:
    """The graph in int8 beside it, and what that costs."""
    coarse, trial = bare.with_name("int8.onnx"), bare.with_name("trial.onnx")
    quantise(bare, coarse)
    found = replace(found, precision="int8", calibration=None)
    write(coarse.read_bytes(), found, trial)
    alone = load(trial, "int8", "onnx")
    together = replace(alone, encode=GraphEncoder(found, onnx.session(trial, "int8", found.shapes)))
    furthest = max(moved(found, own.encode, reference, samples) for own in (alone, together))
    measured = measure(Embedder(exact), Embedder(alone), Embedder(together), *tested)
    cost = replace(measured.cost, moved=furthest)
    return coarse, replace(found, calibration=measured.calibration, cost=asdict(cost))


def _widths(found: Exported, encode: Encode) -> tuple[int, int]:
    """Of ``features``, and of the shared part, 0 = none."""
    shape = (len(MODALITIES), 1)
    seen = encode(np.zeros((*shape, 3, *found.data.size), np.float32), np.ones(shape, np.bool_))
    return len(found.inputs) * seen.features.shape[2], 0 if seen.shared is None else seen.shared.shape[1]
