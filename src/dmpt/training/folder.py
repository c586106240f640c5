"""A run folder: resolved config, log, resume state, last and best adapter, environment.

config.yaml        the settings, all of them; files and folders by their absolute paths
environment.json   versions, commit, command
metrics.jsonl      one line per step and per evaluation (``log``)
state.safetensors  everything that resuming needs (``state``)
last/, best/       adapters (``dmpt.adapter``)
.lock              held by the process that trains here; of no use to anybody later
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmpt.adapter.calibration import FILE
from dmpt.adapter.files import CARD, TENSORS
from dmpt.base.environment import environment
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, write_text
from dmpt.base.lock import Lock, Taken
from dmpt.base.terminal import console
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.places import absolute
from dmpt.settings.saved import CONFIG, read_settings, write_settings
from dmpt.settings.values import checked
from dmpt.training.log import LOG, cut_log
from dmpt.training.state import PLAN, STATE, fixed_settings, refuse_change

_ENVIRONMENT, _LOCK = "environment.json", ".lock"
_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""How the package of that name calls a file that it is writing, beside the one that we asked for."""


def as_begun(config: Config, out: Path) -> Config:
    """The settings with absolute paths, and with what the run in ``out`` began with where they leave it open.

    Open are the data's folder, a range to measure (``auto``), and what the run starts from.

    Raises:
        UserError: there is no such home directory, or the run's ``config.yaml`` is damaged and needed.
    """
    data, begun = config.data, dict[str, Any]()
    if (out / CONFIG).exists():
        needed = data.root is None or data.value_range == "auto"
        with nullcontext() if needed else suppress(UserError):  # damaged: said where it matters
            begun = read_settings(out)
    if data.root is None:
        data = replace(data, root=begun.get("data.root"))
    if data.value_range == "auto" and begun:
        fixed = checked(DataConfig, {"value_range": begun.get("data.value_range")}, str(out / CONFIG))
        data = replace(data, value_range=fixed.value_range)
    init = config.init or begun.get("init")
    return absolute(replace(config, data=data, init=init and str(expanded(init).absolute())))


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that is in use, before any work is done; nothing is written.

    Raises:
        UserError: ``out`` is a file, holds something and ``resume`` is off, or holds something that is no run. What a
            kill in a run's first moments leaves is one.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if not out.exists() or all(path.name == _LOCK for path in out.iterdir()):
        return
    if not resume:
        raise UserError(f"--out {out} is in use; give another folder, or --resume to go on with this run")
    # dots: the temporary names under which files are written
    first = _LOCK, _ENVIRONMENT, f".{_ENVIRONMENT}.", f".{CONFIG}."
    begun = (out / CONFIG).exists() and (out / _ENVIRONMENT).exists()
    if not begun and not all(path.name.startswith(first) for path in out.iterdir()):
        raise UserError(f"--out {out} holds something, but no run to resume; give another folder")


@contextmanager
def held(out: Path, config: Config, resume: bool, replan: bool) -> Iterator[None]:
    """Inside, the folder is there, says what is known of the run, and nobody else trains in it, where there are locks.

    Args:
        out: the run folder.
        config: the settings.
        resume: what is there may be gone on with.
        replan: the number of epochs may be another one.

    Raises:
        UserError: another run has the folder or filled it meanwhile, its run began with other settings, or it cannot be
            written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = Lock(out / _LOCK)
    except Taken:
        raise UserError(f"{out}: another process is training there; wait until it has ended, or stop it") from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out, or check rights") from error
    try:
        if not lock.works:
            console.print(f"{out} lies where there are no locks: a second run in it would go unnoticed")
        check_folder(out, resume)  # again: another run may have begun, and ended, since
        _sweep(out)
        if not (out / STATE).exists():
            _begin(out, config, replan)
        yield
    finally:
        lock.release()


def _sweep(out: Path) -> None:
    """Remove what a kill left of files that were being written; nobody else may be writing there."""
    temporary = tuple(f".{name}." for name in (STATE, LOG, CONFIG, _ENVIRONMENT, TENSORS, CARD, FILE))
    for path in out.rglob(".*"):
        if path.name.startswith(temporary) or _SAFETENSORS.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()


def _begin(out: Path, config: Config, replan: bool) -> None:
    """Write what is known of the run; one that was killed before it saved anything begins again."""
    if (out / CONFIG).exists():
        refuse_change(read_settings(out), fixed_settings(config), out, [PLAN] if replan else [])
    write_text(out / _ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
    write_settings(out, config)
    cut_log(out, 0)
