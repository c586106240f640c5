"""``dmpt synth``."""

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from dmpt.base.terminal import stderr
from dmpt.verbs.parser import Parser


def add(parser: Parser) -> None:
    """Write a synthetic three-spectrum data set: persons as RGBNT201, vehicles as MSVR310."""
    parser.add_argument("out", type=Path, help="Folder to write; must be empty or not exist.")
    parser.add_argument("--ids", type=PositiveInt, default=250, help="Identities in all.")
    parser.add_argument("--test-ids", type=PositiveInt, default=100, help="How many of them are for testing.")
    parser.add_argument("--images", type=PositiveInt, default=8, help="Samples per identity.")
    parser.add_argument("--cameras", type=PositiveInt, default=4, help="Cameras, at most 8.")
    parser.add_argument("--object", choices=["person", "vehicle"], default="person", help="What is seen.")
    parser.add_argument("--size", type=tuple[int, int] | None, default=None, help="Height and width in pixels.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Of everything that is drawn.")
    parser.add_argument("--workers", type=PositiveInt | None, default=None, help="Processes; default: all cores.")


def run(arguments: Namespace) -> None:
    """Run the verb ``synth``."""
    from dmpt.base.errors import UserError
    from dmpt.synthetic.write import write_world

    if arguments.test_ids >= arguments.ids:
        raise UserError(f"--test-ids is {arguments.test_ids} of --ids {arguments.ids}; leave some for training")
    out = arguments.out
    write_world(
        out,
        object=arguments.object,
        train_ids=arguments.ids - arguments.test_ids,
        test_ids=arguments.test_ids,
        images=arguments.images,
        cameras=arguments.cameras,
        seed=arguments.seed,
        size=arguments.size,
        workers=arguments.workers,
    )
    stderr.write(f"done: {out}; look at {out / 'contact_sheet.png'}\n")
