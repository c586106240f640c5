"""What a training step costs when prompts enter from layer l on: backward ends there.

Steps of DMPT for some l, and of the presets, in rounds that run all, beside full fine-tuning of the plain tower on our
attention and on timm's own two, of which the fastest counts. FLOPs are those of the matrix products that PyTorch counts
in forward and backward. Ratios within one process.
"""

from dataclasses import replace
from functools import partial

from torch.utils.flop_counter import FlopCounterMode

from dmpt.settings.values import dotted
from dmpt.study.reading import shipped_settings
from dmpt.study.rows import config_of
from goals import beside, goal, machine, rounds, table
from models import PATHS, Case, Step, Tower, case_of, parser_of, tower, trainee

PLAIN = [f"full fine-tuning, {path}" for path in PATHS]
CLAIMS = {0: 0.8, 6: 0.65}
"""Share of full fine-tuning's time that a step may take at l of 12."""
PRESETS = ("dmpt+", "dmpt-fast")
FASTER = 1.3
"""What dmpt-fast should be of the paper's design."""


def main() -> None:
    parser = parser_of(__doc__, samples=4, repeats=5)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 6, 9], help="l, counted from 0")
    args = parser.parse_args()
    case = case_of(args)
    print(machine())
    print(f"\n{case}")
    frozen = tower(case.plain("frozen"))
    steps = {f"DMPT, l = {first}": first_layer(case, frozen, first) for first in args.layers}
    steps |= {name: preset(case, frozen, name) for name in PRESETS}
    trained = Step(case, trainee(case.plain("full")))

    full = {plain: partial(trained.on, path) for plain, path in zip(PLAIN, PATHS, strict=True)}
    of_full = flops(trained)
    times = rounds({**steps, **full}, 1 if args.quick else args.repeats)
    table(times)
    print(f"\n{'share of full fine-tuning':30}{'step time':>12}{'FLOPs':>12}{'speed against the first':>26}")
    ratios = {label: beside(times, label, PLAIN) for label in steps}
    speeds = {label: 1 / beside(times, label, [f"DMPT, l = {args.layers[0]}"]) for label in steps}
    for label, step in steps.items():
        print(f"{label:30}{ratios[label]:12.3f}{flops(step) / of_full:12.3f}{speeds[label]:26.2f}")
    print()
    for first, limit in CLAIMS.items():
        if first in args.layers and not args.overrides:  # the goals are for 12 layers
            goal(f"step_l{first}_per_full_{case.name}_{case.precision}", ratios[f"DMPT, l = {first}"], limit)
    if args.layers[0] == 0:
        goal(f"speed_of_dmpt-fast_{case.name}_{case.precision}", speeds["dmpt-fast"], FASTER, at_most=False)


def first_layer(case: Case, frozen: Tower, first: int) -> Step:
    """A step with prompts from one layer on."""
    config = case.dmpt()
    return Step(case, trainee(replace(config, semantic=replace(config.semantic, first_layer=first)), frozen))


def preset(case: Case, frozen: Tower, name: str) -> Step:
    """A step of DMPT as a file of ``configs/`` changes it."""
    change = shipped_settings(name)
    return Step(case, trainee(config_of(dotted(case.dmpt()) | change), frozen))


def flops(step: Step) -> int:
    """Of forward and backward."""
    step.model.backbone.path = "ours"  # fused kernels are not counted on every device
    with FlopCounterMode(display=False) as counter:
        step.backward()
    step.optimizer.zero_grad()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
