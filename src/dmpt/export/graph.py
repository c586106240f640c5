"""The network as one graph of fixed steps, whatever a sample lacks, and as ONNX.

It is the network's own tower, run flat over the images of the modalities that are asked for. Nothing in it depends on
what is there: images of absent modalities are replaced by zeros, so that not even NaN gets through, and are masked
where the network masks them. Prompts are constants.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.base.errors import UserError, one_line
from dmpt.export.quiet import quiet
from dmpt.method.backbone import LayerPrompts
from dmpt.method.modalities import MODALITY_COUNT
from dmpt.method.network import DMPT
from dmpt.runtime.exported import Input
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES

MOST = 2**31 - (16 << 20)
"""Bytes of weights: a file of protobuf ends at 2 GiB."""


class Graph(nn.Module):
    """A network that takes some modalities, batch first.

    Args:
        network: in evaluation mode, its low-rank updates folded.
        data: ``mean`` and ``std``.
        inputs: modalities, in the order of ``MODALITIES``.
        input: what images are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: DMPT, data: DataConfig, inputs: Sequence[str], input: Input) -> None:
        super().__init__()
        self.network, self.input = network.eval(), input
        self.places = tuple(MODALITIES.index(name) for name in inputs)
        baked: Sequence[LayerPrompts] | None = network.bake()
        if baked is None and network.prompts is not None:  # they stay tokens
            baked = network.prompts()
        self.prompts = None if baked is None else [_chosen(own, self.places) for own in baked]
        for name, values in (("mean", data.mean), ("std", data.std)):
            assert values is not None
            self.register_buffer(name, torch.tensor([255 * value for value in values]).view(3, 1, 1))

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of inputs and of outputs; one modality needs none that says whether it is there."""
        several = len(self.places) > 1
        inputs = [*(MODALITIES[place] for place in self.places), "present"] if several else ["images"]
        return inputs, ["features", "shared"] if "shared" in self.network.also else ["features"]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Images of each modality, and of several bool ``(B, k)``, to vectors ``(B, k D)`` and shared parts.

        Images are ``(B, 3, H, W)``, of uint8 ``(B, H, W, 3)``.
        """
        network, count = self.network, len(self.places)
        images = torch.stack([self._normalised(own) for own in given[:count]])
        here = images.new_ones(images.shape[:2], dtype=torch.bool)
        if count > 1:
            here = given[count].transpose(0, 1)
            images = torch.where(here[..., None, None, None], images, images.new_zeros(()))  # 0 x NaN would be NaN
        present = self._whole(here)
        behind = {layer: partial(self._behind, step) for layer, step in network.behind(present).items()}
        tokens = network.backbone(
            images.flatten(0, 1),
            self.prompts,
            network.form,
            keep_prompts=network.bind is not None,
            behind=behind,
            modalities=self.places,
        )
        output = network.read(self._whole(tokens.view(count, -1, *tokens.shape[1:])), present)
        features = network.test_feature(output.features)
        if count < MODALITY_COUNT:
            parts = features.view(features.shape[0], MODALITY_COUNT, -1)
            features = torch.cat([parts[:, place] for place in self.places], dim=1)
        shared = output.also.get("shared")
        return (features,) if shared is None else (features, F.normalize(shared, dim=-1))

    def _normalised(self, images: Tensor) -> Tensor:
        if self.input == "normalised":
            return images
        if self.input == "uint8":
            images = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (images - self.mean) / self.std

    def _whole(self, x: Tensor) -> Tensor:
        """``(k, B, ...)`` to ``(3, B, ...)``, with zeros in the other places."""
        if len(self.places) == MODALITY_COUNT:
            return x
        nothing = torch.zeros_like(x[0])
        rows = {place: x[row] for row, place in enumerate(self.places)}
        return torch.stack([rows.get(place, nothing) for place in range(MODALITY_COUNT)])

    def _behind(self, step: Any, tokens: Tensor) -> Tensor:
        """An exchange, which takes all three modalities."""
        whole = self._whole(tokens.view(len(self.places), -1, *tokens.shape[1:]))
        left: Tensor = step(whole.flatten(0, 1))
        left = left.view(MODALITY_COUNT, -1, *left.shape[1:])
        return torch.cat([left[place] for place in self.places])


def _chosen(prompts: LayerPrompts, places: Sequence[int]) -> LayerPrompts:
    """Those of some modalities, as constants."""
    if isinstance(prompts, tuple):
        keys, values = (part.detach()[list(places)] for part in prompts)
        return keys, values
    return None if prompts is None else prompts.detach()[list(places)]


def examples(graph: Graph, size: tuple[int, int], batch: int = 3) -> tuple[Tensor, ...]:
    """Inputs that a graph takes; one sample lacks a modality where there are several."""
    shape = (batch, *size, 3) if graph.input == "uint8" else (batch, 3, *size)
    kind = torch.uint8 if graph.input == "uint8" else torch.float32
    count = len(graph.places)
    images = [torch.zeros(shape, dtype=kind) for _ in range(count)]
    if count == 1:
        return tuple(images)
    present = torch.ones(batch, count, dtype=torch.bool)
    present[0, 0] = False
    return (*images, present)


def write_onnx(graph: Graph, size: tuple[int, int], path: Path) -> None:
    """The graph as ONNX, whose batch may be of any size.

    Raises:
        UserError: it is too large for one file, or torch cannot export it.
    """
    total = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if total > MOST:
        raise UserError(
            f"the model has {total / 1e9:.1f} GB of weights, and a file of ONNX holds 2; export a smaller backbone.name"
        )
    inputs, outputs = graph.names
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    given = examples(graph, size)
    try:
        with torch.no_grad(), quiet():
            program: Any = torch.onnx.export(
                graph.eval(),
                given,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in given),),
                input_names=inputs,
                output_names=outputs,
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises whatever it meets
        raise UserError(f"torch {torch.__version__} cannot export this model ({one_line(str(error))[:300]})") from error
    _forget_where(program.model)
    program.save(path, external_data=False)


def _forget_where(model: Any) -> None:
    """The exporter notes lines of source by their paths on this machine."""
    model.doc_string, model.graph.doc_string = None, None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
