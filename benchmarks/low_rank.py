"""The advised preset beside full fine-tuning: a training step, its gradients and moments, and inference merged.

Steps run in rounds that run all, beside full fine-tuning of the plain tower on our attention and on timm's own two, of
which the fastest counts. "two products" is LoRA as it is usually written: B A x beside W x. Inference is the tower with
merged updates, shared and per modality, beside the plain tower, beside updates that all stay products of their own, and
beside those of a modality that do where the shared one is merged.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.base.memory import keep_freed_memory
from dmpt.extensions.lora import LoRA, fold_lora, merge_lora
from dmpt.method.backbone import Backbone
from dmpt.settings.config import Config
from dmpt.settings.shipped import read_config
from goals import beside, goal, machine, rounds, table
from models import PATHS, Case, Path, Step, case_of, network, parser_of, tower, trainee

FULL = [f"full fine-tuning, {path}" for path in PATHS]
PLAIN = [f"plain tower, {path}" for path in PATHS]
FORMS: dict[str, Callable[[Backbone], object]] = {
    "not merged": lambda backbone: None,
    "shared part merged": fold_lora,
    "merged": merge_lora,
}
STEP, STEP_FAST, BYTES, MERGED, MERGED_SA = 0.65, 0.55, 0.12, 1.02, 1.06
"""Goals: shares of full fine-tuning's step and of its bytes, and of the plain tower's time."""


class TwoProducts(LoRA):
    """B A x beside W x, shared updates alone."""

    def forward(self, x: Tensor, modalities: Sequence[int]) -> Tensor:
        """As ``LoRA``."""
        down, up = self._factors(0)
        return self.frozen(x) + F.linear(F.linear(x, down), up)


def main() -> None:
    args = parser_of(__doc__, samples=16, repeats=5).parse_args()
    case, repeats = case_of(args), 1 if args.quick else args.repeats
    keep_freed_memory()  # as dmpt train and dmpt embed do
    print(f"{machine()}\n\n{case}; medians of {repeats}")
    training(case, repeats)
    inference(case, repeats)


def preset(case: Case, name: str = "decoupled", **change: Any) -> Config:
    """A file of ``configs/`` on the tower of the case; the learning rate is that of ``Case.dmpt``."""
    own = case.plain("lora")
    tower = {f"backbone.{key}": getattr(own.backbone, key) for key in ("name", "weights", "overrides")}
    rest = {"data.size": list(case.size), "train.precision": case.precision, "train.lr": own.train.lr}
    return read_config(name, {**tower, **rest, **{key.replace("__", "."): value for key, value in change.items()}})


def training(case: Case, repeats: int) -> None:
    """Steps, and what their gradients and moments hold."""
    shared = {"lora__first_layer": 0, "lora__rank_per_modality": 0, "bind__depth": 0}
    steps = {
        "shared alone, every layer, two products": Step(case, trainee(preset(case, **shared))),
        "shared alone, every layer": Step(case, trainee(preset(case, **shared))),
        "decoupled, every layer": Step(case, trainee(preset(case, lora__first_layer=0))),
        "decoupled": Step(case, trainee(preset(case))),
        "decoupled-fast": Step(case, trainee(preset(case, "decoupled-fast"))),
    }
    for module in next(iter(steps.values())).model.modules():
        if isinstance(module, LoRA):
            module.__class__ = TwoProducts
    full = Step(case, trainee(case.plain("full")))

    times = rounds({**steps, **{name: partial(full.on, path) for name, path in zip(FULL, PATHS, strict=True)}}, repeats)
    table(times)
    print(f"\n{'share of full fine-tuning':42}{'step time':>12}{'gradients + optimiser':>24}{'trained, M':>12}")
    for label, step in steps.items():
        share = held(step) / held(full)
        print(f"{label:42}{beside(times, label, FULL):12.3f}{share:24.3f}{trained(step) / 1e6:12.2f}")
    print()
    suffix = f"{case.name}_{case.precision}"
    goal(f"step_per_full_{suffix}", beside(times, "decoupled", FULL), STEP)
    goal(f"step_fast_per_full_{suffix}", beside(times, "decoupled-fast", FULL), STEP_FAST)
    goal(f"bytes_per_full_{suffix}", held(steps["decoupled"]) / held(full), BYTES)


def trained(step: Step) -> int:
    """How many numbers it trains."""
    return sum(p.numel() for p in step.trained)


def held(step: Step) -> int:
    """Bytes of gradients and of Adam's two moments, all of them float32."""
    return 12 * trained(step)


def inference(case: Case, repeats: int) -> None:
    """From images to features."""
    frozen = tower(case.plain("frozen"))
    plain = network(case.plain("frozen"), frozen).eval()
    images = case.images()

    def run(model: torch.nn.Module, path: Path = "ours") -> object:
        frozen.path = path
        with torch.inference_mode(), case.autocast():
            return model(images)

    variants: dict[str, Callable[[], object]] = {
        name: partial(run, plain, path) for name, path in zip(PLAIN, PATHS, strict=True)
    }
    for label, change in (
        ("shared alone, no attention", {"lora__rank_per_modality": 0, "bind__depth": 0}),
        ("shared alone", {"lora__rank_per_modality": 0}),
        ("decoupled, no attention", {"bind__depth": 0}),
        ("decoupled", {}),
    ):
        for form, put in FORMS.items():
            model = network(preset(case, **change)).eval()
            put(model.backbone)
            variants[f"{label}, {form}"] = partial(run, model)
    times = rounds(variants, repeats)
    print()
    table(times)
    print(f"\n{'share of the plain tower':42}{'time':>12}")
    shares = {label: beside(times, label, PLAIN) for label in variants if label not in PLAIN}
    for label, share in shares.items():
        print(f"{label:42}{share:12.3f}")
    print()
    suffix = f"{case.name}_{case.precision}"
    goal(f"merged_shared_per_plain_{suffix}", shares["shared alone, no attention, merged"], MERGED)
    goal(f"merged_per_plain_{suffix}", shares["decoupled, no attention, merged"], MERGED)
    goal(f"merged_with_attention_per_plain_{suffix}", shares["decoupled, merged"], MERGED_SA)


if __name__ == "__main__":
    main()
