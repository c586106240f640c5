"""What users see of the command line: every flag with its default and help, and what is said of mistakes."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmpt.adapter.packaged import FOLDER as PACKAGED
from dmpt.cli import VERBS, _verb, main

FROZEN = Path(__file__).parent / "frozen"
HELP: dict[str, dict[str, tuple[Any, str]]] = yaml.safe_load((FROZEN / "help.yaml").read_text(encoding="utf-8"))
ERRORS: dict[str, dict[str, Any]] = yaml.safe_load((FROZEN / "errors.yaml").read_text(encoding="utf-8"))


COMMANDS = [
    f"{verb} {inner}".strip() for verb in VERBS for inner in getattr(_verb(verb), "VERBS", [""])
]  # some verbs have verbs of their own


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_names_every_flag_its_default_and_what_it_does(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as end:
        main([*verb.split(), "--help"])
    assert end.value.code == 0
    flags = HELP[verb] | (HELP["settings"] if "--config" in HELP[verb] else {})
    shown = re.split(r"^  (?=\S)", capsys.readouterr().out, flags=re.MULTILINE)
    entries = {part.split()[0]: " ".join(part.split("\n\n")[0].split()) for part in shown[1:]}
    for name, (default, text) in flags.items():
        assert text in entries[name]
        if default not in (None, "switch", "required"):
            said = re.search(r"default: (.*)\)", entries[name])
            assert said is not None, entries[name]
            assert yaml.safe_load(said[1]) == yaml.safe_load(str(default))
    assert set(entries) - set(flags) <= {"-h,", "--print_config"}


@pytest.mark.parametrize("name", ERRORS)
def test_a_mistake_is_said_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    case = ERRORS[name]
    if "file" in case:
        (tmp_path / "a.yaml").write_text(case["file"], encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main(case["arguments"])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = [line.replace(str(PACKAGED), "PACKAGED") for line in err.splitlines() if not line.startswith("note: ")]
    assert said == [case["says"]]
    assert [path.name for path in tmp_path.iterdir()] == (["a.yaml"] if "file" in case else [])


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, dmpt.cli\ntry: dmpt.cli.main([*sys.argv[1:], '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'lance', 'pyarrow'} & set(sys.modules)"
    for verb in COMMANDS:
        subprocess.run([sys.executable, "-c", code, *verb.split()], capture_output=True, check=True)
