"""Where a number comes from."""

import shutil
import subprocess
import sys
from pathlib import Path

import dmpt.base.environment as module


def test_the_commit_is_that_of_our_own_repository(tmp_path: Path) -> None:
    """An installed package often lies in somebody's repository, in a .venv that it ignores."""
    shutil.copytree(
        Path(module.__file__).parents[1], tmp_path / ".venv" / "dmpt", ignore=shutil.ignore_patterns("*.pyc")
    )
    git = ("git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b")
    (tmp_path / ".gitignore").write_text(".venv\n")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "theirs")):
        subprocess.run([*git, *command], check=True)
    said = "from dmpt.base.environment import _commit; import dmpt; print(_commit(), dmpt.__file__)"

    def commit() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", said], cwd=tmp_path / ".venv", capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert commit() == ["None", str(tmp_path / ".venv" / "dmpt" / "__init__.py")]
    subprocess.run([*git, "add", "-f", ".venv/dmpt"], check=True)
    subprocess.run([*git, "commit", "-qm", "ours"], check=True)
    assert len(commit()[0]) == 12
