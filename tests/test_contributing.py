"""The recipes of CONTRIBUTING.md, followed in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dmpt
from toy import write_toy_set

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUICK = ["--data.size=[32,16]", "--data.pad=2", "--data.workers=0", "--train.epochs=1", "--train.ids=4"]
QUICK += ["--train.instances=2", "--text.loss=off", "--modality.source=learned", "--backbone.weights=random"]
TOWER = ["--backbone.name=vit_small_patch16_224", "--backbone.overrides={embed_dim: 48, depth: 2, num_heads: 3}"]


def recipe(name: str) -> str:
    """The change of a section."""
    section = PAGE.split(f"\n## {name}\n")[1].split("\n## ")[0]
    found = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    assert len(found) == 1
    assert found[0].count("new file mode") <= 1
    return str(found[0])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")  # the tiny CLIP is not needed
    shutil.copytree(Path(dmpt.__file__).parent, root / "src" / "dmpt", ignore=ignored)
    shutil.copytree(Path(__file__).parents[1] / "configs", root / "configs")
    return root


def follow(root: Path, name: str) -> None:
    applied = subprocess.run(["git", "apply", "-"], cwd=root, input=recipe(name), capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr


def run(root: Path, *arguments: str) -> str:
    place = {**os.environ, "PYTHONPATH": str(root / "src")}
    where = subprocess.run([sys.executable, "-c", "import dmpt; print(dmpt.__file__)"], env=place, capture_output=True)
    assert str(root) in where.stdout.decode()  # the copy it is
    command = [sys.executable, "-m", "dmpt", *arguments]
    done = subprocess.run(command, env=place, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_toy_set(tmp_path / "toy", train_ids=8, test_ids=4, images=6, cameras=2, size=(32, 16))
    return tmp_path / "toy"


@pytest.mark.long
def test_a_data_set(copy: Path, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "gate"
    for split, theirs in (("train", "train_8"), ("test", "test")):
        for folder, also in (("visible", "RGB"), ("near", "NI"), ("thermal", "TI")):
            (own / split / folder).mkdir(parents=True)
            for path in sorted((data / theirs / also).iterdir()):
                pid, camera, _, number = path.stem.split("_")
                name = f"{int(pid)}_{camera.removeprefix('cam')}_{int(number)}.png"
                Image.open(path).save(own / split / folder / name)
    follow(copy, "A data set")
    assert "error" not in run(copy, "check", str(own), "--layout", "gate").lower().replace("0 errors", "")
    said = run(copy, "train", "--data.layout=gate", f"--data.root={own}", *QUICK, *TOWER, f"--out={tmp_path / 'run'}")
    assert "gate: 48 samples of 8 identities" in said
    assert "rank-1" in run(copy, "evaluate", str(tmp_path / "run"))


@pytest.mark.long
def test_a_loss(copy: Path, data: Path, tmp_path: Path) -> None:
    follow(copy, "A loss")
    settings = [f"--data.root={data}", *QUICK, *TOWER, "--missing.dropout=0.2", "--loss.decorrelation=0.5"]
    run(copy, "train", *settings, f"--out={tmp_path / 'run'}")
    assert '"decorrelation": 0.' in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.long
def test_a_backbone(copy: Path, data: Path, tmp_path: Path) -> None:
    follow(copy, "A backbone")
    tower = ["--backbone.name=vit_small_patch16_dinov3", TOWER[1]]
    said = run(copy, "train", f"--data.root={data}", *QUICK, *tower, f"--out={tmp_path / 'run'}")
    assert "vit_small_patch16_dinov3, frozen" in said
    assert "rank-1" in run(copy, "evaluate", str(tmp_path / "run"))


@pytest.mark.long
def test_a_backbone_of_timms_by_its_name(data: Path, tmp_path: Path) -> None:
    root = Path(dmpt.__file__).parents[2]
    tower = ["--backbone.name=deit3_small_patch16_224", TOWER[1]]
    said = run(root, "train", f"--data.root={data}", *QUICK, *tower, f"--out={tmp_path / 'run'}")
    assert "deit3_small_patch16_224, frozen" in said
