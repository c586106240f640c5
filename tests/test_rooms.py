"""The rooms of ``src/dmpt``: imports go one way, and the ground floor does without torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dmpt

SOURCE = Path(dmpt.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"  # where the order is written down
ORDER = [*re.findall(r"^\| `(\w+)/` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE), "cli"]


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports(path: Path, root: Path = SOURCE) -> list[tuple[int, str]]:
    """Line and module of each import from the package, those inside functions and under ``TYPE_CHECKING`` too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root.parent).parts[:-1]
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.startswith("dmpt.")]


def upward(path: Path, root: Path = SOURCE) -> list[str]:
    """Imports from a room that stands below in the order."""
    room = path.relative_to(root).parts[0].removesuffix(".py")
    if room.startswith("__"):
        return []
    wrong = []
    for line, name in imports(path, root):
        other = name.split(".")[1]
        if other in ORDER and ORDER.index(other) > ORDER.index(room):
            wrong.append(f"{path.relative_to(root)}:{line} imports {name}")
    return wrong


def test_imports_go_one_way() -> None:
    paths = modules()
    assert sum(len(imports(path)) for path in paths) > 500
    assert [wrong for path in paths for wrong in upward(path)] == []


def test_an_upward_import_would_be_seen(tmp_path: Path) -> None:
    root = tmp_path / "dmpt"
    (root / "base").mkdir(parents=True)
    path = root / "base" / "x.py"
    for line in (
        "from dmpt.data import records",
        "import dmpt.data.records",
        "def f():\n    from ..data.records import Record",
        "from dmpt import data",
    ):
        path.write_text(line + "\n")
        assert len(upward(path, root)) == 1, line
    path.write_text("from dmpt.base.errors import UserError\nimport numpy\n")
    assert upward(path, root) == []


def test_every_room_is_in_the_order_and_nothing_lies_loose() -> None:
    rooms = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert sorted([*rooms, "cli"]) == sorted(ORDER)
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}
    for room in rooms:
        assert any(path.name != "__init__.py" for path in (SOURCE / room).glob("*.py")), f"{room} is empty"


def test_the_method_knows_no_settings_and_is_short() -> None:
    paths = sorted((SOURCE / "method").glob("*.py"))
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths) < 900
    allowed = {"dmpt.base.errors", "dmpt.settings.modalities", "dmpt.towers", "dmpt.method"}
    for path in paths:
        for line, name in imports(path):
            assert any(name.startswith(f"{room}.") for room in allowed), f"{path.name}:{line} imports {name}"


def test_no_file_is_long() -> None:
    long = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {str(path.relative_to(SOURCE)): count for path, count in long.items() if count > 330} == {}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param("base settings retrieval", id="base, settings, retrieval"),
        pytest.param("data.records data.images", id="decoding and resizing"),
        pytest.param("adapter.calibration runtime.exported runtime.onnx runtime.openvino", id="an exported file"),
        pytest.param("embed.embedder embed.shots gallery pages", id="its face, and galleries"),
    ],
)
def test_without_torch(names: str, tmp_path: Path) -> None:
    wanted = [
        ".".join(["dmpt", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        for path in modules()
        if any(".".join(path.relative_to(SOURCE).with_suffix("").parts).startswith(name) for name in names.split())
    ]
    for name in names.split():
        assert any(module.startswith(f"dmpt.{name}") for module in wanted), name
    work = """
from pathlib import Path
from PIL import Image
from dmpt.data.images import read_image, resize
Image.new("RGB", (20, 30), (200, 100, 50)).save("x.png")
pixels = resize(read_image(Path("x.png"), (0.0, 65535.0)), (8, 4))
assert pixels.shape == (3, 8, 4) and (pixels[0] == 200).all()
"""
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "open_clip", "accelerate"):
            raise ModuleNotFoundError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import importlib
for name in {wanted!r}:
    importlib.import_module(name)
{work if "images" in names else ""}
assert "torch" not in sys.modules
try:
    import torch
except ImportError:
    print("blocked, and done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "blocked, and done", done.stderr


def test_every_extension_has_a_test_file_of_its_own() -> None:
    files = {path.stem for path in (SOURCE / "extensions").glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "extensions").glob("test_*.py")}
    assert len(files) > 10
    assert files <= tests
