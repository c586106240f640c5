"""DMPT: decoupled modality-aware prompt tuning for multi-modal object re-identification.

Paper: M. Lin et al., "DMPT: Decoupled Modality-aware Prompt Tuning for Multi-modal Object Re-identification",
WACV 2025 (arXiv 2504.10985). docs/method.md puts its equations beside the code.

What is here is the public face (docs/api.md). Each name is imported when it is first asked for, so that ``import dmpt``
alone is quick and does without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmpt.base.errors import UserError
    from dmpt.data.records import Record
    from dmpt.embed.embedder import Embedder, load
    from dmpt.embed.verdict import Verdict
    from dmpt.evaluation.conditions import Conditions
    from dmpt.evaluation.evaluate import evaluate
    from dmpt.gallery.store import Gallery, open_gallery
    from dmpt.retrieval.embeddings import Embeddings
    from dmpt.settings.config import Config
    from dmpt.settings.shipped import read_config
    from dmpt.training.train import train

__version__ = "0.1.0"
__all__ = [
    "Conditions",
    "Config",
    "Embedder",
    "Embeddings",
    "Gallery",
    "Record",
    "UserError",
    "Verdict",
    "__version__",
    "evaluate",
    "load",
    "open_gallery",
    "read_config",
    "train",
]

_HOMES = {
    "Conditions": "dmpt.evaluation.conditions",
    "Config": "dmpt.settings.config",
    "Embedder": "dmpt.embed.embedder",
    "Embeddings": "dmpt.retrieval.embeddings",
    "Gallery": "dmpt.gallery.store",
    "Record": "dmpt.data.records",
    "UserError": "dmpt.base.errors",
    "Verdict": "dmpt.embed.verdict",
    "evaluate": "dmpt.evaluation.evaluate",
    "load": "dmpt.embed.embedder",
    "open_gallery": "dmpt.gallery.store",
    "read_config": "dmpt.settings.shipped",
    "train": "dmpt.training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dmpt' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return __all__
