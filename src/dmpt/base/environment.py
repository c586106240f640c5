"""Where a number comes from."""

import platform
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import dmpt


@cache
def _commit() -> str | None:
    """Commit of the source tree that is running, ``-dirty`` with uncommitted changes; None when installed."""
    folder = Path(__file__).parent
    if not any((parent / ".git").exists() for parent in folder.parents):
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else the repository is that of somebody's .venv
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    import timm
    import torch

    return {
        "dmpt": dmpt.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "command": shlex.join(sys.argv),
    }
