"""A run folder: resolved config, log, resume state, last and best adapter, environment.

config.yaml        the settings, all of them
environment.json   versions, commit, command
metrics.jsonl      one line per step and per evaluation (``log``)
state.safetensors  everything that resuming needs (``state``)
last/, best/       adapters (``dmpt.adapter``)
.lock              held by the process that trains here; of no use to anybody later
"""

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dmpt.adapter.folder import CARD, TENSORS
from dmpt.base.environment import environment
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, write_text
from dmpt.base.lock import Lock, Taken
from dmpt.base.yaml import load
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.values import checked, dotted, flatten, nest, renamed
from dmpt.training.log import LOG, cut_log
from dmpt.training.state import PLAN, STATE, fixed_settings, refuse_change

CONFIG, ENVIRONMENT, LOCK = "config.yaml", "environment.json", ".lock"
SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""How the package of that name calls a file that it is writing, beside the one that we asked for."""


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder's ``config.yaml``, as dotted keys.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    path = folder / CONFIG
    try:
        return renamed(flatten(load(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove its folder and run again") from error


def as_begun(config: Config, out: Path) -> Config:
    """The settings, with what the run in ``out`` began with where they leave it open; its start by its whole path.

    Open are a range to measure (``auto``), and what the run starts from.
    """
    data, init = config.data, config.init
    if data.value_range == "auto" and (out / CONFIG).exists():
        begun = checked(DataConfig, {"value_range": read_settings(out).get("data.value_range")}, str(out / CONFIG))
        data = replace(data, value_range=begun.value_range)
    if init is None and (out / CONFIG).exists():
        with suppress(UserError):  # damaged: said where it matters
            init = read_settings(out).get("init")
    return replace(config, data=data, init=init and str(expanded(init).absolute()))


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that is in use, before any work is done; nothing is written.

    Raises:
        UserError: ``out`` is a file, holds something and ``resume`` is off, or holds something that is no run. What a
            kill in a run's first moments leaves is one.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if not out.exists() or all(path.name == LOCK for path in out.iterdir()):
        return
    if not resume:
        raise UserError(f"--out {out} is in use; give another folder, or --resume to go on with this run")
    # dots: the temporary names under which files are written
    first = LOCK, ENVIRONMENT, f".{ENVIRONMENT}.", f".{CONFIG}."
    begun = (out / CONFIG).exists() and (out / ENVIRONMENT).exists()
    if not begun and not all(path.name.startswith(first) for path in out.iterdir()):
        raise UserError(f"--out {out} holds something, but no run to resume; give another folder")


def begin(out: Path, config: Config, replan: bool) -> None:
    """Write what is known of the run; one that was killed before it saved anything begins again.

    Args:
        out: the run folder.
        config: the settings.
        replan: the number of epochs may be another one.

    Raises:
        UserError: the folder cannot be written, or its run began with other settings.
    """
    if (out / STATE).exists():
        return
    if (out / CONFIG).exists():
        refuse_change(read_settings(out), fixed_settings(config), out, [PLAN] if replan else [])
    write_text(out / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
    write_settings(out, config)
    cut_log(out, 0)


def write_settings(out: Path, config: Config) -> None:
    """Write ``config.yaml``.

    Raises:
        UserError: the folder cannot be written.
    """
    write_text(out / CONFIG, yaml.safe_dump(nest(dotted(config)), sort_keys=False))


def sweep(out: Path) -> None:
    """Remove what a kill left of files that were being written; nobody else may be writing there."""
    temporary = tuple(f".{name}." for name in (STATE, LOG, CONFIG, ENVIRONMENT, TENSORS, CARD))
    for path in out.rglob(".*"):
        if path.name.startswith(temporary) or SAFETENSORS.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def claim(out: Path) -> Lock:
    """Keep others from training in the folder, where its file system has locks.

    Raises:
        UserError: another run has it, or the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Lock(out / LOCK)
    except Taken:
        raise UserError(f"{out}: another process is training there; wait until it has ended, or stop it") from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out, or check rights") from error
