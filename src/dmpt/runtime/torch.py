"""A trained model in torch: from its run folder or adapter folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.adapter.calibration import Calibration
from dmpt.adapter.calibration import load as load_calibration
from dmpt.adapter.files import TENSORS, adapter_folder
from dmpt.adapter.folder import Card, load_card, network_of
from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.data.images import Pixels
from dmpt.data.transforms import TestTransform
from dmpt.extensions.shared import shared_part
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings
from dmpt.runtime.runtime import Runtime, calibrated_at

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A network whose prompts are constants: images in, embeddings out.

    Args:
        network: on its device; left in evaluation mode.
        precision: compute precision.
    """

    def __init__(self, network: DMPT, precision: torch.dtype = torch.float32):
        self.network, self._precision = network.eval(), precision
        with torch.inference_mode():
            # In the tower's precision, without autocast: norms in it, where training has them in float32, so the last
            # digits differ.
            self._baked = network.bake()
        self._part = shared_part(network)
        self._standardisation = None if self._part is None else self._part.standardisation().numpy()

    def __call__(self, images: Any, present: Any) -> Embeddings:
        """Normalised images ``(3, B, 3, H, W)`` and bool ``(3, B)``, which are there, to B embeddings.

        Both are tensors or arrays.
        """
        return self.views(images, present, [present])[0]

    def views(self, images: Any, present: Any, masks: Sequence[Any]) -> list[Embeddings]:
        """The same samples, seen with some of their modalities: B embeddings for each of ``masks``, bool ``(3, B)``.

        An image passes the tower once, unless modalities meet in it: only what mixes them is computed again.
        """
        images, present, network = torch.as_tensor(images), torch.as_tensor(present), self.network
        device = next(network.parameters()).device

        def where(mask: Tensor) -> Tensor | None:
            return None if mask.all() else mask.to(device)

        found = []
        with torch.inference_mode(), torch.autocast(device.type, self._precision, self._precision != torch.float32):
            images = images.to(device, non_blocking=True)
            tokens = None if network.dense else network.tokens(images, where(present), self._baked)
            for mask in map(torch.as_tensor, masks):
                here = where(mask)
                output = network(images, here, self._baked) if tokens is None else network.read(tokens, here)
                features = network.test_feature(output.features).view(images.shape[1], len(images), -1).cpu().numpy()
                shared = None if self._part is None else F.normalize(output.also["shared"], dim=-1).cpu().numpy()
                found.append(Embeddings(features, mask.T.numpy(), shared, self._standardisation))
        return found


def runtime_of(
    network: DMPT, card: Card, precision: str, adapter: str, calibration: Calibration | None = None
) -> Runtime:
    """A network that runs.

    Args:
        network: on its device, its tower in ``precision``.
        card: the adapter's.
        precision: of the computation, a key of ``PRECISIONS``.
        adapter: sha256 of its tensors' file.
        calibration: of that at this precision.
    """
    data = card.config.data
    assert data.mean is not None and data.std is not None  # noqa: PT018  # a card has them filled in
    prepare = TestTransform(data.size, data.mean, data.std)

    def transform(images: Mapping[str, Pixels], out: Mapping[str, Any]) -> None:
        prepare(images, {name: _tensor(place) for name, place in out.items()})

    encode = Encoder(network, PRECISIONS[precision])
    return Runtime("torch", data, tuple(data.modalities), precision, adapter, calibration, transform, encode, card)


def _tensor(place: Any) -> Tensor:
    """The same memory."""
    return torch.as_tensor(place)


def load(name: Path, which: str | None, weights: str | None, precision: str | None) -> Runtime:
    """A trained model from its folder; arguments and errors are those of ``dmpt.load``."""
    folder = adapter_folder(name, which)
    card, gpu = load_card(folder), torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise UserError("precision fp16 needs a GPU; give bf16 or fp32")
    if precision not in (None, *PRECISIONS):
        raise UserError(
            f"{name} computes in {', '.join(PRECISIONS)}, not in {precision}; dmpt export makes such a file"
        )
    calibration = load_calibration(folder)
    adapter = sha256(folder / TENSORS) if calibration is None else calibration.adapter
    chosen = precision or ("bf16" if native_bf16(gpu) else "fp32")
    known = {*PRECISIONS} - (set() if gpu else {"fp16"})
    if calibration is not None and precision is None and calibration.precision in known:
        chosen = calibration.precision
    calibration = calibrated_at(calibration, chosen, folder)
    network, _ = network_of(folder, card, weights, PRECISIONS[chosen])
    return runtime_of(network.to("cuda" if gpu else "cpu"), card, chosen, adapter, calibration)


def native_bf16(gpu: bool) -> bool:
    """Whether bf16 is quicker than fp32 here: elsewhere it is emulated."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not say
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
