"""Prompts as attention prefixes beside prompts as tokens, and DMPT beside the plain frozen tower.

ViT-B/16, 32 semantic prompts and one modality prompt per layer. Each comparison is of medians of ratios within rounds
that run all variants. Where the plain tower or a stack of blocks is compared with, it runs on our attention and on
timm's own two, and the fastest of the three counts.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from dmpt.method.network import DMPT, Baked
from goals import beside, goal, machine, rounds, table
from models import ON_CPU, PATHS, Case, Path, Step, Tower, network, tower, trainee

Variants = dict[str, Callable[[], object]]
TIMM = [f"timm's blocks at the token form's length, {path[5:]}" for path in PATHS[1:]]
PLAIN = [f"plain tower, {path}" for path in PATHS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="smoke test: one round of a ViT-Ti/16 at 64x32")
    parser.add_argument("--precision", choices=[*ON_CPU, "both"], default="both")
    args = parser.parse_args()
    name, size = (
        ("vit_tiny_patch16_224", (64, 32)) if args.quick else ("vit_base_patch16_clip_quickgelu_224", (256, 128))
    )
    repeats = 1 if args.quick else args.repeats
    print(machine())
    results = []
    for precision in ON_CPU if args.precision == "both" else [args.precision]:
        case = Case(name, size, args.samples, precision)
        print(f"\n{case}; medians of {repeats}")
        results.append((precision, *(rounds(variants, repeats) for variants in (inference(case), training(case)))))
        for times in results[-1][1:]:
            table(times)
    print()
    for precision, infer, train in results:
        goal(f"prefix_per_token_training_{precision}", beside(train, "k=1, prefix", ["k=1, token"]), 0.85)
        # At inference prefixes are constants: evaluation, embedding and export bake them.
        goal(f"prefix_per_token_inference_{precision}", beside(infer, "k=1, baked prefix", ["k=1, token"]), 0.85)
        goal(f"prefix_k0_per_plain_inference_{precision}", beside(infer, "k=0, baked prefix", PLAIN), 1.05)
        goal(f"dmpt_baked_per_plain_inference_{precision}", beside(infer, "k=1, baked prefix", PLAIN), 1.10)
        goal(f"token_blocks_per_timm_inference_{precision}", beside(infer, "token form's blocks", TIMM), 1.05)
        goal(f"token_blocks_per_timm_training_{precision}", beside(train, "token form's blocks", TIMM), 1.05)


def inference(case: Case) -> Variants:
    """From images to features or, for the blocks, to tokens; all on one tower."""
    frozen = tower(case.plain("frozen"))
    images = case.images()
    plain = network(case.plain("frozen"), frozen).eval()

    def run(model: DMPT, path: Path = "ours", baked: Baked = None) -> Tensor:
        frozen.path = path
        with torch.inference_mode(), case.autocast():
            return model(images, baked=baked).features.x

    variants: Variants = {name: partial(run, plain, path) for name, path in zip(PLAIN, PATHS, strict=True)}
    for depth in (0, 1):
        for form in ("prefix", "token"):
            variants[f"k={depth}, {form}"] = partial(run, network(case.dmpt(depth, form), frozen).eval())
        model = network(case.dmpt(depth), frozen).eval()
        with case.autocast(), torch.no_grad():
            variants[f"k={depth}, baked prefix"] = partial(run, model, baked=model.bake())
    return variants | blocks(case, frozen, train=False)


def training(case: Case) -> Variants:
    """Whole training steps; for the blocks forward and backward to what the prompts are."""
    frozen = tower(case.plain("frozen"))
    variants: Variants = {}
    for depth in (0, 1):
        for form in ("prefix", "token"):
            variants[f"k={depth}, {form}"] = Step(case, trainee(case.dmpt(depth, form), frozen))
    return variants | blocks(case, frozen, train=True)


def blocks(case: Case, frozen: Tower, train: bool) -> Variants:
    """The token form, which exchanges the prompts at every layer, and timm's blocks on as many tokens."""
    model = network(case.dmpt(0, "token"), frozen)
    images = case.images()
    assert model.prompts is not None

    def ours() -> Tensor:
        return frozen(images.flatten(0, 1), model.prompts(), "token")

    def timms(path: Path) -> Tensor:
        frozen.path = path
        x, first = frozen.embed(images.flatten(0, 1)), model.prompts()[0]
        own = first.repeat_interleave(images.shape[1], dim=0).to(x.dtype)
        return frozen.timm_blocks(torch.cat([x, own], dim=1))

    def run(call: Callable[[], Tensor]) -> None:
        with nullcontext() if train else torch.inference_mode():
            with case.autocast():
                out = call()
            if train:
                out.float().square().mean().backward()
                model.zero_grad()

    variants: Variants = {"token form's blocks": partial(run, ours)}
    return variants | {name: partial(run, partial(timms, path)) for name, path in zip(TIMM, PATHS[1:], strict=True)}


if __name__ == "__main__":
    main()
