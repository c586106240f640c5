"""The command ``dmpt``: one verb per function. Heavy imports are inside the verbs, so ``dmpt --help`` is instant."""

import difflib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader
from jsonargparse.typing import NonNegativeInt, PositiveInt

from dmpt import __version__
from dmpt.config import Config
from dmpt.errors import UserError
from dmpt.yaml12 import load

PLAIN = {
    r'^Parser key "([\w.]+)":': r"\1:",
    r"Expected a <class 'int'>\.": "expected a whole number.",
    r"Expected a <class 'float'>\.": "expected a number.",
    r"Expected a typing\.Literal\[(.*?)\]\.": r"expected one of \1.",
}
"""What the parser says of a wrong value, in words."""
SECTIONS = tuple(f.name for f in fields(Config) if is_dataclass(f.type))


class Parser(ArgumentParser):
    """Ends with one line and exit code 2, and names the nearest setting when one is unknown."""

    file: str | None = None  # the YAML that was given, for the message when it cannot be parsed

    def parse_args(self, args: Sequence[str], **options: Any) -> Namespace:  # type: ignore[override]
        """Parse, and remember the file."""
        given = [part for arg in args for part in arg.split("=", 1)]
        self.file = dict(itertools.pairwise(given)).get("--config")
        parsed: Namespace = super().parse_args(list(args), **options)
        for name in SECTIONS:
            if name in parsed and not isinstance(parsed[name], Namespace):
                self.error(f"{name} is a group of settings, not {parsed[name]!r}; write {name}: {{key: value}}")
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong and end."""
        text = " ".join(str(message).split())
        unknown = re.search(r"[Uu]nrecognized arguments: --([\w.-]+)", text)
        in_group = re.search(r"Group '([\w.]+)' does not accept option '([\w.-]+)'", text)
        key = re.search(r"[Oo]ption '([\w.-]+)' is not accepted|does not accept option '([\w.-]+)'", text)
        wrong = None
        if unknown:
            wrong = unknown[1]
        elif in_group:
            wrong = f"{in_group[1]}.{in_group[2]}"
        elif key:
            wrong = key[1] or key[2]
        if wrong is not None:
            text = f"unknown setting {wrong}" + _nearest(wrong, self._settings())
        elif text.startswith("Problems parsing config:"):
            where = re.search(r'in "<unicode string>", (line \d+)', text)
            why = re.sub(r' in "<unicode string>".*', "", text.removeprefix("Problems parsing config:"))
            text = f"--config {self.file}, {where[1] if where else 'as a whole'}: no YAML ({why.strip()})"
        elif text.startswith("Unexpected config:"):
            text = f"--config {self.file}: must hold settings, as in train: {{epochs: 60}}"
        elif "File does not exist" in text and self.file is not None:
            text = f"--config {self.file} does not exist; configs/ has examples"
        else:
            for jargon, plain in PLAIN.items():
                text = re.sub(jargon, plain, text)
        sys.stderr.write(f"{self.prog}: error: {text}\n")
        raise SystemExit(2)

    def _settings(self) -> list[str]:
        return [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]


def _nearest(wrong: str, known: Sequence[str]) -> str:
    """The settings that the user may have meant, as the end of a sentence."""
    tails = {name: name.rsplit(".", 1)[-1] for name in known}
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    near = near or [name for name, tail in tails.items() if tail == wrong.rsplit(".", 1)[-1]]
    return f"; did you mean {near[0]}?" if near else "; --help lists them all"


def _with_settings(parser: Parser) -> None:
    parser.add_argument("--config", action="config", help="YAML file of settings; later flags override it.")
    parser.add_class_arguments(Config)


def _config(arguments: Namespace) -> Config:
    return Config(**{f.name: arguments[f.name] for f in fields(Config)})


def add_train(parser: Parser) -> None:
    """Train a model on the training split."""
    _with_settings(parser)
    parser.add_argument("--out", type=str, required=True, help="Run folder to write.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out triplets with unreadable images.")


def train(arguments: Namespace) -> None:
    """Run the verb ``train``."""
    from dmpt.run import Stopped
    from dmpt.train import Trainer

    out = Path(arguments.out)
    trainer = Trainer(_config(arguments), out, arguments.resume, arguments.skip_broken)
    try:
        trainer.fit()
    except Stopped:
        if trainer.main:
            sys.stderr.write(
                f"stopped after step {trainer.progress.step}, saved; go on with the same command and --resume\n"
            )
        raise
    if trainer.main:
        sys.stderr.write(f"done: {out}; next: dmpt evaluate {out}\n")


def add_evaluate(parser: Parser) -> None:
    """Evaluate a run or adapter on the test split: mAP, CMC, mINP."""
    parser.add_argument("run", type=str, help="Run folder or adapter folder.")
    parser.add_argument("--data.root", type=str, default=None, help="Data folder; default: where training found it.")
    parser.add_argument(
        "--data.workers", type=NonNegativeInt, default=None, help="Loader processes; default: as in training."
    )
    parser.add_argument("--backbone.weights", type=str, default=None, help="Weights file, when it has moved.")
    parser.add_argument("--which", choices=["last", "best"], default=None, help="Default: the one training selected.")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default=None, help="Default: as in training.")
    parser.add_argument("--batch-size", type=PositiveInt, default=64, help="Triplets per pass.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out triplets with unreadable images.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def evaluate(arguments: Namespace) -> None:
    """Run the verb ``evaluate``."""
    from dmpt.evaluate import evaluate as run
    from dmpt.evaluate import save

    result = run(
        Path(arguments.run),
        arguments["data.root"],
        which=arguments.which,
        weights=arguments["backbone.weights"],
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        workers=arguments["data.workers"],
        skip_broken=arguments.skip_broken,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _show(result)
    save(Path(arguments.run), result)  # last: a folder that cannot be written to loses no number


def _show(result: dict[str, Any]) -> None:
    provenance = result["provenance"]
    _table(
        f"{provenance['data']}, protocol {result['protocol']}: {result['valid_queries']} of {result['queries']} "
        f"queries valid, gallery {result['gallery']}",
        ["mAP", "rank-1", "rank-5", "rank-10", "mINP"],
        [[f"{result[key]:.1f}" for key in ("mAP", "rank1", "rank5", "rank10", "mINP")]],
    )
    if result["skipped"]:
        print(f"skipped {len(result['skipped'])} broken triplets:", *result["skipped"], sep="\n  ")
    if provenance["selected"] == "test" and provenance["which"] == "best":
        print("selected on this very test set: an optimistic number")


def add_params(parser: Parser) -> None:
    """Count parameters: component, shape, frozen or trained. Needs no weights."""
    _with_settings(parser)
    parser.add_argument(
        "--ids", type=PositiveInt, default=None, help="Training identities; default: the data set's own."
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def params(arguments: Namespace) -> None:
    """Run the verb ``params``."""
    from dmpt.data.datasets import DATASETS
    from dmpt.params import count_parameters

    config = _config(arguments)
    ids = arguments.ids or DATASETS[config.data.layout].train_ids
    result = count_parameters(config, ids)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    rows = [
        [c["name"], c["shape"], f"{c['count']:,}", "trained" if c["trained"] else "frozen"]
        for c in result["components"]
    ]
    _table(f"{config.backbone.name}, {ids} identities", ["component", "shape", "count", ""], rows)
    print(f"trained    {result['trained']:>13,}")
    print(f"in memory  {result['in_memory']:>13,}")
    print(f"paper's ratio: trained / (three towers {result['towers']:,} + trained) = {result['paper_ratio']:.2f} %")


def add_demo(parser: Parser) -> None:
    """Train on a small generated set, on any machine, in a minute or two."""
    parser.add_argument("--out", type=str, default="demo", help="Folder to write.")


def demo(arguments: Namespace) -> None:
    """Run the verb ``demo``."""
    import torch

    from dmpt.demo import demo as run

    torch.set_num_threads(1)  # faster on tensors this small, and gentle to a busy machine
    run(Path(arguments.out))


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(header):
        table.add_column(column, justify="right" if rows and rows[0][number][:1].isdigit() else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


VERBS: dict[str, tuple[Callable[[Parser], None], Callable[[Namespace], None]]] = {
    "train": (add_train, train),
    "evaluate": (add_evaluate, evaluate),
    "params": (add_params, params),
    "demo": (add_demo, demo),
}

HELP = "usage: dmpt VERB ...\n\n{verbs}\n\ndmpt VERB --help lists a verb's settings. dmpt --version prints {version}.\n"


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exit code 0, 2 for what the user can mend, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--version"]:
        print(f"dmpt {__version__}")
        return
    if not argv or argv[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {name:<10} {(add.__doc__ or '').splitlines()[0]}" for name, (add, _) in VERBS.items())
        print(HELP.format(verbs=verbs, version=__version__))
        raise SystemExit(0 if argv else 2)
    if argv[0] not in VERBS:
        near = difflib.get_close_matches(argv[0], VERBS, n=1)
        sys.stderr.write(f"dmpt: error: unknown verb {argv[0]}" + (f"; did you mean {near[0]}?\n" if near else "\n"))
        raise SystemExit(2)
    set_loader("yaml", load, (yaml.YAMLError,))
    add, run = VERBS[argv[0]]
    parser = Parser(prog=f"dmpt {argv[0]}", description=add.__doc__)
    add(parser)
    arguments: Any = parser.parse_args(argv[1:])
    try:
        run(parser.instantiate(arguments))
    except UserError as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        if type(error) is KeyboardInterrupt:
            sys.stderr.write(f"{parser.prog}: stopped; what was saved before is kept\n")
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # rights, a lost disk: nothing that a traceback would explain
        where = f" {error.filename}:" if error.filename else ""
        what = f"{where} {error.strerror or error}; check that it is there, and its rights"
        sys.stderr.write(f"{parser.prog}: error:{what}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
