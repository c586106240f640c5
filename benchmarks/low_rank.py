"""Low-rank updates beside full fine-tuning: a training step, its gradients and moments, and inference merged.

Steps run in rounds that run all, beside full fine-tuning of the plain tower on our attention and on timm's own two, of
which the fastest counts. "two products" is LoRA as it is usually written: B A x beside W x. Inference is the tower with
merged updates, shared and per modality, beside the plain tower and beside updates that stay products of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.extensions.lora import LoRA, merge_lora
from dmpt.settings.config import BindConfig, Config, LoraConfig
from goals import beside, goal, machine, rounds, table
from models import PATHS, Case, Path, Step, case_of, network, parser_of, tower, trainee

FULL = [f"full fine-tuning, {path}" for path in PATHS]
PLAIN = [f"plain tower, {path}" for path in PATHS]
DECOUPLED, FAST = "shared and per modality, SA", "the same from layer 3 on"
STEP, STEP_FAST, BYTES, MERGED, MERGED_SA = 0.65, 0.55, 0.12, 1.02, 1.06
"""Goals: shares of full fine-tuning's step and of its bytes, and of the plain tower's time."""


class TwoProducts(LoRA):
    """B A x beside W x, shared updates alone."""

    def forward(self, x: Tensor, modalities: Sequence[int]) -> Tensor:
        """As ``LoRA``."""
        down, up = self._factors(0)
        return self.frozen(x) + F.linear(F.linear(x, down), up)


def main() -> None:
    parser = parser_of(__doc__, samples=16, repeats=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--per-modality", type=int, default=16)
    args = parser.parse_args()
    case = case_of(args)
    ranks = {"rank": args.rank, "rank_per_modality": args.per_modality}
    repeats = 1 if args.quick else args.repeats
    print(f"{machine()}\n\n{case}; medians of {repeats}")
    training(case, ranks, repeats)
    inference(case, ranks, repeats)


def settings(case: Case, attention: bool = False, **update: object) -> Config:
    """The plain tower with updates of every map; ``attention``: one internal attention behind it."""
    config = case.plain("lora")
    bind = BindConfig(depth=1, external=False, share=True) if attention else config.bind
    return replace(config, lora=LoraConfig(where="all", **update), bind=bind)  # type: ignore[arg-type]


def training(case: Case, ranks: dict[str, int], repeats: int) -> None:
    """Steps, and what their gradients and moments hold."""
    steps = {"two products, shared": Step(case, trainee(settings(case, rank=ranks["rank"])))}
    for module in steps["two products, shared"].model.modules():
        if isinstance(module, LoRA):
            module.__class__ = TwoProducts
    steps["shared"] = Step(case, trainee(settings(case, rank=ranks["rank"])))
    steps["shared and per modality"] = Step(case, trainee(settings(case, **ranks)))
    steps[DECOUPLED] = Step(case, trainee(settings(case, True, **ranks)))
    steps[FAST] = Step(case, trainee(settings(case, True, **ranks, first_layer=3)))
    steps["the same from the middle on"] = Step(case, trainee(settings(case, True, **ranks, first_layer="middle")))
    full = Step(case, trainee(case.plain("full")))

    times = rounds({**steps, **{name: partial(full.on, path) for name, path in zip(FULL, PATHS, strict=True)}}, repeats)
    table(times)
    print(f"\n{'share of full fine-tuning':34}{'step time':>12}{'gradients + optimiser':>24}{'trained, M':>12}")
    for label, step in steps.items():
        share = held(step) / held(full)
        print(f"{label:34}{beside(times, label, FULL):12.3f}{share:24.3f}{trained(step) / 1e6:12.2f}")
    print()
    suffix = f"{case.name}_{case.precision}"
    goal(f"step_per_full_{suffix}", beside(times, DECOUPLED, FULL), STEP)
    goal(f"step_fast_per_full_{suffix}", beside(times, FAST, FULL), STEP_FAST)
    goal(f"bytes_per_full_{suffix}", held(steps[DECOUPLED]) / held(full), BYTES)


def trained(step: Step) -> int:
    """How many numbers it trains."""
    return sum(p.numel() for p in step.trained)


def held(step: Step) -> int:
    """Bytes of gradients and of Adam's two moments, all of them float32."""
    return 12 * trained(step)


def inference(case: Case, ranks: dict[str, int], repeats: int) -> None:
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
    for label, attention, own in (
        ("shared", False, {"rank": ranks["rank"]}),
        ("shared and per modality", False, ranks),
        ("shared, SA", True, {"rank": ranks["rank"]}),
        (DECOUPLED, True, ranks),
    ):
        for merged in (False, True):
            model = network(settings(case, attention, **own)).eval()
            if merged:
                merge_lora(model.backbone)
            variants[f"{label}, {'merged' if merged else 'not merged'}"] = partial(run, model)
    times = rounds(variants, repeats)
    print()
    table(times)
    print(f"\n{'share of the plain tower':45}{'time':>10}")
    shares = {label: beside(times, label, PLAIN) for label in variants if label not in PLAIN}
    for label, share in shares.items():
        print(f"{label:45}{share:10.3f}")
    print()
    suffix = f"{case.name}_{case.precision}"
    goal(f"merged_per_plain_{suffix}", shares["shared, merged"], MERGED)
    goal(f"merged_per_modality_per_plain_{suffix}", shares["shared and per modality, merged"], MERGED)
    goal(f"merged_with_attention_per_plain_{suffix}", shares["shared, SA, merged"], MERGED_SA)
    goal(f"merged_decoupled_per_plain_{suffix}", shares[f"{DECOUPLED}, merged"], MERGED_SA)


if __name__ == "__main__":
    main()
