"""Whether an exported model runs where nothing is installed but what docs/export.md says, and how large that is.

python tools/empty_environment.py [--keep FOLDER]

Exports package:tiny, makes an environment by the lines of the page, embeds drawn persons in it, and compares their
vectors with torch's. pip needs a package index. CI runs this.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

import dmpt
from dmpt.cli import main as command
from dmpt.synthetic.world import World

ROOT = Path(__file__).parents[1]
NAMES = ("rgb", "nir", "tir")
_INSIDE = """
import sys
from importlib.util import find_spec
assert all(find_spec(name) is None for name in ("torch", "torchvision", "timm", "open_clip", "sklearn"))
import numpy as np, dmpt
model, given = dmpt.load("model.onnx"), np.load("given.npz")
found = model.embed(**{name: list(given[name]) for name in ("rgb", "nir", "tir")})
same = model.compare(found[:1], found[1:2]).same, model.compare(found[:1], found[2:3]).same
np.savez("found.npz", flat=found.flat, same=same)
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dmpt-empty-") as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(exist_ok=True)
        check(folder.resolve())


def check(folder: Path) -> None:
    """All of it, in a folder.

    Raises:
        SystemExit: the vectors or verdicts are others than torch's.
    """
    command(["export", "package:tiny", "--out", str(folder / "model.onnx")])
    world = World(seed=5, cameras=4, size=(128, 64))  # the model's size: resizing is another test's
    shots = [world.shoot(pid, camera, 0) for pid, camera in ((1, 1), (1, 2), (2, 3))]
    given = {name: np.stack([getattr(shot, name) for shot in shots]) for name in NAMES}
    np.savez(folder / "given.npz", **given)
    model = dmpt.load("package:tiny", precision="fp32")
    expected = model.embed(**{name: list(own) for name, own in given.items()})  # type: ignore[arg-type]
    same = [model.compare(expected[:1], expected[slice(n, n + 1)]).same for n in (1, 2)]

    venv.create(folder / "venv", with_pip=True)
    python = next(path for place in ("bin", "Scripts") for path in (folder / "venv" / place).glob("python*"))
    before = size(folder / "venv")
    for line in lines():
        subprocess.run([python, "-m", *line], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([python, "-c", _INSIDE], cwd=folder, check=True)
    found = np.load(folder / "found.npz")
    apart = float(np.abs(found["flat"] - expected.flat).max())
    print(f"without torch: {(size(folder / 'venv') - before) / 1e6:.0f} MB installed, at most {apart:.1g} from torch")
    if not apart < 1e-4 or found["same"].tolist() != same:
        raise SystemExit(f"vectors differ by {apart}, or verdicts: {found['same'].tolist()}, torch says {same}")


def lines() -> list[list[str]]:
    """What the page says to install, of which dmpt is this checkout."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    section = page.partition("## Where torch is not installed\n")[2].partition("\n## ")[0]
    said = [line.split() for line in re.findall(r"^    (pip install .*)$", section, re.MULTILINE)]
    if len(said) != 2:
        sys.exit("docs/export.md does not say what to install in two lines")
    quiet = ["pip", "--disable-pip-version-check"]
    return [[*quiet, *(str(ROOT) if word == "dmpt" else word for word in line[1:])] for line in said]


def size(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
