"""The Markdown pages: what they link to and what they name is there."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from dmpt.settings.config import Config
from dmpt.settings.values import RENAMED

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")])
    if page.name != "CHANGELOG.md"
]
SOURCES = [path for top in ("src", "tests", "tools", "benchmarks") for path in (ROOT / top).rglob("*.py")]
FOLDERS = "src|tests|tools|benchmarks|configs|studies|docs"


SECTIONS = {field.name: getattr(Config(), field.name) for field in fields(Config)}
SETTINGS = {
    f"{name}.{field.name}" for name, section in SECTIONS.items() if is_dataclass(section) for field in fields(section)
}


def text_of(page: Path) -> str:
    """Without diffs, which name files that are to be."""
    return re.sub(r"```diff\n.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    return dead


def unknown_files(text: str) -> list[str]:
    """Python files anywhere, by the end of their path, and whatever is named below a folder of the project."""
    known = [path.as_posix() for path in SOURCES]
    python = re.findall(r"[\w/]+\.py\b", text)
    unknown = [name for name in python if not any(path.endswith(f"/{name}") for path in known)]
    for name in re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w/+.*-]*\w", text):
        if not name.endswith(".py") and not any(ROOT.glob(name)):
            unknown.append(name)
    return unknown


def unknown_names(text: str) -> list[str]:
    """What stands behind a file, as in ```heads.py` `Heads``, and is not defined in it.

    The ways of ``docs/architecture.md`` write ``-> Heads (method/heads.py)`` or ``-> method/heads.py Heads``.
    """
    unknown = []
    named = re.findall(r"`([\w/]+\.py)`:?((?: `[A-Za-z_][\w.]*`,?)+)", text)
    named += [(file, name) for name, file in re.findall(r"^ +(?:-> )?([\w.]+) \(([\w/]+\.py)\)", text, re.MULTILINE)]
    named += re.findall(r"-> ([\w/]+\.py) ([A-Za-z_]\w*)(?=,|  )", text)
    for file, names in named:
        sources = "\n".join(path.read_text() for path in SOURCES if path.as_posix().endswith(f"/{file}"))
        for name in re.findall(r"[A-Za-z_]\w*", names):
            if not re.search(rf"(?:def|class) {name}\b|^\s*{name}\b.*=|\b{name}: ", sources, re.MULTILINE):
                unknown.append(f"{file} {name}")
    return unknown


def unknown_settings(text: str) -> list[str]:
    """As in ``--data.root`` or ```data.root``."""
    sections = "|".join(name.split(".")[0] for name in SETTINGS)
    named = re.findall(rf"(?:`|--)((?:{sections})\.[a-z_]+)(?![\w/.(])", text)
    files = (".py", ".yaml", ".csv", ".html", ".safetensors")
    return [name for name in named if name not in SETTINGS | set(RENAMED) and not name.endswith(files)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = text_of(page)
    assert dead_links(page) == []
    assert unknown_files(text) == []
    assert unknown_names(text) == []
    assert unknown_settings(text) == []


def test_what_is_not_there_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[a](other.md) [b](#a-tail) [c](#a-head) [d](page.md#a-head)\n")
    assert dead_links(page) == ["other.md", "#a-tail"]
    assert unknown_files("`heads.py`, `method/haeds.py`, configs/rgbnt*.yaml, configs/nobody.yaml") == [
        "method/haeds.py",
        "configs/nobody.yaml",
    ]
    assert unknown_names("`heads.py` `Heads`, `Haeds` and `bind.py` `PromptIBind.forward`") == ["heads.py Haeds"]
    ways = "    -> Haeds (method/heads.py)\n    -> method/heads.py heads    what\n    -> Heads (method/heads.py)\n"
    assert unknown_names(ways) == ["method/heads.py Haeds", "method/heads.py heads"]
    assert unknown_settings("`data.root`, --train.ems 0.9, `loss.triplet`, `loss.py`") == ["train.ems"]


def test_pages_stay_short() -> None:
    words = {page.name: len(text_of(page).split()) for page in PAGES}
    assert words["study.md"] < 2500
    assert words["method.md"] < 1500
