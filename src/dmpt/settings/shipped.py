"""YAML files that come with the package: the repository's ``configs/`` and ``studies/``, in the wheel beside this."""

from pathlib import Path


def folder(kind: str = "configs") -> Path:
    """Where they are; an editable install reads the repository's.

    Args:
        kind: ``configs`` or ``studies``.
    """
    package = Path(__file__).parents[1]
    return package / kind if (package / kind).is_dir() else package.parents[1] / kind


def settings_file(name: str) -> Path | None:
    """The file of a bare name, e.g. ``rgbnt201``; None when there is no such file or the name is a path."""
    path = folder() / f"{name}.yaml"
    return path if path.name == f"{name}.yaml" and path.is_file() else None
