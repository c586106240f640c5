"""Make ``package:tiny`` again: draw persons, train an adapter of the tiny CLIP, calibrate it; see tools/README.md.

Writes OUT/world, OUT/run and OUT/tiny, and puts the three files of OUT/tiny into the package. Killed and started again
with the same command, it goes on where it was.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from dmpt.adapter.calibration import FILE as CALIBRATION
from dmpt.adapter.files import CARD, TENSORS
from dmpt.adapter.folder import Card, load_card, load_tensors, save_card
from dmpt.adapter.packaged import FOLDER
from dmpt.base.environment import environment
from dmpt.cli import main as dmpt
from dmpt.synthetic.write import write_world
from dmpt.towers.tensors import write_tensors

PRESET = "decoupled"
"""On top of ``tiny``: what we advise."""
SEED, TRAIN_IDS, TEST_IDS, CAMERAS, EPOCHS = 500, 240, 160, 8, 4
LICENCE = "Apache-2.0: tower, adapter and pictures are ours; the pictures are drawn (dmpt synth), and show nobody"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/package_tiny"), help="folder for what comes on the way")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of training")
    args = parser.parse_args(arguments)
    world, run, tiny = args.out / "world", args.out / "run", args.out / "tiny"
    if not world.exists():
        write_world(world, train_ids=TRAIN_IDS, test_ids=TEST_IDS, images=8, cameras=CAMERAS, seed=SEED)
    train = {"data.root": world, "data.workers": 0, "train.epochs": args.epochs}
    train |= {"train.precision": "bf16", "train.select": "val", "train.eval_every": 2}
    settings = ["--config", "tiny", "--config", PRESET, *(f"--{key}={value}" for key, value in train.items())]
    dmpt(["train", *settings, "--out", str(run), "--resume"])
    pack(run / "best", tiny, "python tools/package_tiny.py" + f" --epochs {args.epochs}" * (args.epochs != EPOCHS))
    # In the precision that every processor has, on identities that neither training nor selection has seen.
    dmpt(["calibrate", str(tiny), "--data.root", str(world), "--split", "test", "--precision", "fp32"])
    into = FOLDER / "tiny"
    into.mkdir(parents=True, exist_ok=True)
    for name in (TENSORS, CARD, CALIBRATION):
        shutil.copyfile(tiny / name, into / name)
        print(f"{into / name}: {(tiny / name).stat().st_size:,} bytes")


def pack(trained: Path, into: Path, command: str) -> None:
    """The adapter in half precision, in which it is calibrated and ships; its card says what it is made of."""
    tensors, step = load_tensors(trained)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_tensors(into / TENSORS, half, {"step": str(step)})
    card: Card = load_card(trained)
    made = {"command": command, **{key: environment()[key] for key in ("dmpt", "torch", "timm")}}
    drawn = f"drawn persons (dmpt synth, seed {SEED}, {CAMERAS} cameras)"
    save_card(into, replace(card, licence=LICENCE, data=card.data | {"name": drawn, "made": made}))


if __name__ == "__main__":
    main()
