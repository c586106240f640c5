"""``dmpt synth``."""

from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.terminal import stderr
from dmpt.settings.config import Object
from dmpt.settings.numbers import Positive, Seed
from dmpt.synthetic.setup import Setup


def run(
    out: Path,
    /,
    setup: Setup,
    ids: Positive = 250,
    test_ids: Positive = 100,
    images: Positive = 8,
    cameras: Positive = 4,
    object: Object = "person",
    size: tuple[int, int] | None = None,
    seed: Seed = 0,
    workers: Positive | None = None,
) -> None:
    """Write a synthetic three-spectrum data set: persons as RGBNT201, vehicles as MSVR310.

    Args:
        out: Folder to write; must be empty or not exist.
        setup: what each spectrum knows, and what cameras spoil
        ids: Identities in all.
        test_ids: How many of them are for testing.
        images: Samples per identity.
        cameras: Cameras, at most 8.
        object: What is seen.
        size: Height and width in pixels.
        seed: Of everything that is drawn.
        workers: Processes; default: all cores.
    """
    from dmpt.synthetic.write import write_world

    if test_ids >= ids:
        raise UserError(f"--test-ids is {test_ids} of --ids {ids}; leave some for training")
    write_world(
        out,
        object=object,
        train_ids=ids - test_ids,
        test_ids=test_ids,
        images=images,
        cameras=cameras,
        seed=seed,
        size=size,
        setup=setup,
        workers=workers,
    )
    stderr.write(f"done: {out}; look at {out / 'contact_sheet.png'}\n")
