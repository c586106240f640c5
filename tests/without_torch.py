"""A process in which torch, and all that comes with it, cannot be imported."""

import subprocess
import sys
from pathlib import Path

_BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "open_clip", "accelerate", "sklearn"):
            raise ModuleNotFoundError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
"""
_AFTER = """
assert "torch" not in sys.modules
"""


def run_without_torch(code: str, folder: Path) -> str:
    """What it prints."""
    whole = _BLOCK + code + _AFTER
    done = subprocess.run([sys.executable, "-c", whole], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
