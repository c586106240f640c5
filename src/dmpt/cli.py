"""The command ``dmpt``."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from dmpt import __version__
from dmpt.base.errors import UserError, nearest, one_line
from dmpt.base.memory import keep_freed_memory
from dmpt.base.stopping import Stopped, stoppable

VERBS = (
    *("check", "train", "evaluate", "calibrate", "export", "compare", "embed", "gallery", "search", "serve"),
    *("report", "reproduce", "study", "results", "params", "synth", "demo"),
)
"""Modules of ``dmpt.verbs``, in the order of ``dmpt --help``."""

_HELP = (
    "usage: dmpt VERB ...\n\n{verbs}\n\ndmpt VERB --help lists a verb's settings. dmpt --version prints {version}.\n"
)


def _verb(name: str) -> Any:
    return import_module(f"dmpt.verbs.{name}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Exit code 0; 1 when ``check`` finds errors and ``compare`` two that differ; 2 for what the user can mend; 3 where
    ``compare`` has no verdict; 128 and its number after a signal.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    who = "dmpt " + argv[0] if argv and argv[0] in VERBS else "dmpt"
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text; a message about one must not fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with stoppable():
                _run(argv)
        except KeyboardInterrupt as error:
            _say_stopped(who, error)
            raise SystemExit(128 + getattr(error, "number", signal.SIGINT)) from None
        finally:
            sys.stdout.flush()  # here, where a reader that has gone does no harm
    except UserError as error:
        _say(f"{who}: error: {one_line(str(error))}\n")
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        _drop_output()
    except OSError as error:  # rights, a lost disk: nothing that a traceback would explain
        if error.filename is None:  # maybe the output's own
            _drop_output()
        where = f" {error.filename}:" if error.filename else ""
        what = f"{where} {error.strerror or error}; check that it is there, and its rights"
        _say(f"{who}: error:{one_line(what)}\n")
        raise SystemExit(2) from None


def _say(text: str) -> None:
    from dmpt.base.terminal import stderr

    stderr.write(text)


def _say_stopped(who: str, error: KeyboardInterrupt) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # the terminal has closed
        _drop_output()
    if not isinstance(error, Stopped):  # which has been said where it was saved
        _say(f"{who}: stopped; what was saved before is kept\n")


def _drop_output() -> None:
    """Else Python would try again, and complain, when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str]) -> None:
    """What the arguments ask for; errors as they come."""
    if argv[:1] == ["--version"]:
        print(f"dmpt {__version__}")
        return
    if not argv or argv[0] in ("-h", "--help"):
        verbs = _listed({name: getattr(_verb(name), "run", _verb(name)) for name in VERBS})
        print(_HELP.format(verbs=verbs, version=__version__))
        raise SystemExit(0 if argv else 2)
    if argv[0] not in VERBS:
        raise UserError(f"unknown verb {argv[0]}{nearest(argv[0], VERBS)}")
    from dmpt.verbs.parser import call  # here, where Ctrl-C is caught

    # Pillow's, of damaged EXIF for one, name no file; what does not decode is an error of ours.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    verb = _verb(argv[0])
    inner = getattr(verb, "VERBS", None)  # of a verb that has verbs of its own
    if inner is None:
        call(verb.run, f"dmpt {argv[0]}", argv[1:], getattr(verb, "preset", None))
    elif len(argv) < 2 or argv[1] in ("-h", "--help"):
        print(f"usage: dmpt {argv[0]} VERB ...\n\n{_listed(inner)}\n\ndmpt {argv[0]} VERB --help lists its settings.")
        raise SystemExit(0 if argv[1:] else 2)
    elif argv[1] not in inner:
        raise UserError(f"unknown verb {argv[0]} {argv[1]}{nearest(argv[1], inner)}")
    else:
        call(inner[argv[1]], f"dmpt {argv[0]} {argv[1]}", argv[2:])


def _listed(verbs: Mapping[str, Any]) -> str:
    return "\n".join(f"  {name:<10} {thing.__doc__.splitlines()[0]}" for name, thing in verbs.items())


if __name__ == "__main__":
    main()
