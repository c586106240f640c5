"""A world that is rendered once and kept."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.files import cache_folder
from dmpt.synthetic.setup import PLAIN, Setup
from dmpt.synthetic.write import Kind, write_world

IMAGES, CAMERAS = 8, 4


def world(*, train_ids: int, test_ids: int, seed: int = 0, object: Kind = "person", setup: Setup = PLAIN) -> Path:
    """The folder of a world, rendered once and kept in the cache.

    Args:
        train_ids: identities to learn from.
        test_ids: identities to find.
        seed: of the world.
        object: persons or vehicles.
        setup: what each spectrum knows, and what cameras spoil.

    Raises:
        UserError: the cache cannot be written.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))  # other code draws another world
    drawn_by = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    what = [object, train_ids, test_ids, IMAGES, CAMERAS, seed, asdict(setup), drawn_by]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    folder = cache_folder() / f"world-{key}"
    if folder.is_dir():
        return folder
    try:
        write_world(
            folder,
            object=object,
            train_ids=train_ids,
            test_ids=test_ids,
            images=IMAGES,
            cameras=CAMERAS,
            seed=seed,
            setup=setup,
        )
    except UserError as error:
        if not folder.is_dir():  # else another process was faster
            raise UserError(f"{error}, or set DMPT_CACHE to another folder") from error
    return folder
