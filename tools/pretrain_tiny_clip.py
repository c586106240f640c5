"""Train the tiny CLIP that ships with the package, from pictures drawn here; see tools/README.md.

Writes OUT/vit.safetensors, OUT/text.safetensors and OUT/tiny_clip.json, then measures them on worlds that training
never saw and writes docs/tiny_clip.md. Killed and started again with the same command, it goes on where it was.
"""

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiny_model
import tiny_report
from dmpt.base.environment import environment
from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically, write_text
from dmpt.base.terminal import bar, console
from dmpt.data.seeds import seed_for
from dmpt.towers.tensors import read_tensors
from tiny_data import SIZE, Captioned, captioned, plan
from tiny_model import TinyCLIP, Words, contrastive_loss

ROOT = Path(__file__).parents[1]
LICENCE = "Apache-2.0"
_PAD, _JITTER, _OBJECT_ALONE, _WARMUP, _CLIP = 4, 0.2, 0.05, 0.05, 1.0
_MAX_SCALE = math.log(100)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    args = _parser().parse_args(arguments)
    command = shlex.join(["python", "tools/pretrain_tiny_clip.py", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        run(args, command)
    except UserError as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        raise SystemExit(2) from None


def run(args: argparse.Namespace, command: str) -> None:
    """Render, train, write and measure.

    Raises:
        UserError: a file cannot be written, a checkpoint is of another command, or the loss is not finite.
    """
    torch.set_num_threads(args.threads)
    pictures = captioned(plan(args.pictures, args.person_worlds, args.vehicle_worlds), args.cache, args.workers)
    training = Training(args, pictures)
    training.fit()
    args.out.mkdir(parents=True, exist_ok=True)
    hashes = training.model.export(args.out, training.words, LICENCE)
    infrared = sum(item.modality != "rgb" for item in pictures.items) / len(pictures)
    about = {
        "name": tiny_model.NAME,
        "overrides": tiny_model.OVERRIDES,
        "size": SIZE,
        "sha256": hashes,
        "licence": LICENCE,
        "command": command,
        **{key: value for key, value in environment().items() if key in ("commit", "torch", "timm", "threads")},
        "settings": training.settings,
        "epochs": training.epochs,
        "steps": training.steps,
        "minutes": round(training.seconds / 60, 1),
        "pictures": len(pictures),
        "infrared_share": round(infrared, 4),
        "parameters": {"image": _count(training.model.vit), "text": _count(training.model.text)},
        "vocabulary": training.words.tokens,
        "curve": training.curve,
    }
    write_text(args.out / "tiny_clip.json", tiny_model.dumps(about) + "\n")
    report = tiny_report.measure(args.out, training.model, training.words, args.held_out)
    tiny_report.write(args.docs, about, report)
    console.print(f"wrote {args.out} and {args.docs / 'tiny_clip.md'}")


@dataclass
class Training:
    """One training run and where it stands.

    Args:
        args: of the command line.
        pictures: what it learns from.

    Attributes:
        step: batches done.
        seconds: of training so far.
        curve: pairs of a step and the mean loss since the pair before.
    """

    args: argparse.Namespace
    pictures: Captioned
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Set up, or take up what a killed run left."""
        args = self.args
        keys = ("seed", "pictures", "person_worlds", "vehicle_worlds", "batch", "lr", "weight_decay", "precision")
        self.settings = {key: getattr(args, key) for key in keys}
        self.epochs = args.epochs
        self.words = Words.of({item.caption for item in self.pictures.items})
        self.per_epoch = len(self.pictures) // args.batch
        if not self.per_epoch:
            raise UserError(f"--batch {args.batch}: only {len(self.pictures)} pictures; lower it")
        torch.manual_seed(args.seed)
        self.model = TinyCLIP(len(self.words.kept)).train()
        decays = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decays}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay)
        self.checkpoint = args.out / "checkpoint.safetensors"
        if self.checkpoint.exists():
            self._load()
        elif args.minutes:
            self.epochs = self._affordable(args.minutes)

    @property
    def steps(self) -> int:
        """Batches of the whole run."""
        return int(self.epochs * self.per_epoch)

    def fit(self) -> None:
        """Train to the end, with a checkpoint every so many steps.

        Raises:
            UserError: the loss is not finite.
        """
        window: list[float] = []
        with bar() as display:
            task = display.add_task("training", total=self.steps, completed=self.step, note="")
            while self.step < self.steps:
                start = time.perf_counter()
                with sdpa_kernel(SDPBackend.MATH):
                    loss = self.advance()
                self.seconds += time.perf_counter() - start
                window.append(loss)
                display.update(task, completed=self.step, note=f"loss {loss:.3f}")
                if self.step % self.args.save_every == 0 or self.step == self.steps:
                    self.curve.append((self.step, round(sum(window) / len(window), 4)))
                    rate = len(window) * self.args.batch
                    window.clear()
                    self._save()
                    if not console.is_terminal:
                        spent = f"{self.seconds / 60:.1f} min"
                        print(f"step {self.step}/{self.steps} loss {self.curve[-1][1]} ({rate} pictures) {spent}")

    def advance(self) -> float:
        """One step; returns its loss.

        Raises:
            UserError: it is not finite.
        """
        draw = np.random.default_rng(seed_for("tiny CLIP", self.args.seed, self.step))
        pictures, ids = self._batch(draw)
        for group in self.optimiser.param_groups:
            group["lr"] = self.args.lr * _schedule(self.step / self.steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.args.precision == "bf16"):
            image, text = self.model.encode_image(pictures), self.model.encode_text(ids)
        loss = contrastive_loss(image, text, self.model.logit_scale.exp(), ids)
        if not math.isfinite(loss.item()):
            raise UserError(f"loss is {loss.item()} at step {self.step}; lower --lr or use --precision fp32")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=_MAX_SCALE)
        self.step += 1
        return loss.item()

    def _batch(self, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Augmented pictures ``(B, 3, H, W)`` in [0, 1] and the ids of their words, of the current step."""
        epoch, position = divmod(self.step, self.per_epoch)
        order = np.random.default_rng(seed_for("tiny CLIP", self.args.seed, "epoch", epoch)).permutation(
            len(self.pictures)
        )
        chosen = order[position * self.args.batch : (position + 1) * self.args.batch]
        pictures = np.stack([_moved(self.pictures.picture(index), draw) for index in chosen])
        items = [self.pictures.items[index] for index in chosen]
        texts = []
        for item in items:
            template = str(draw.choice(tiny_model.TEMPLATES[item.modality])) + ("." if draw.random() < 0.5 else "")
            texts.append(template.format(item.object if draw.random() < _OBJECT_ALONE else item.caption))
        return _recoloured(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255, draw), self.words(texts)

    def _affordable(self, minutes: float) -> int:
        """Epochs that fit into so many minutes, from a few steps that are then forgotten."""
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        with sdpa_kernel(SDPBackend.MATH):
            self.advance()
            start = time.perf_counter()
            for _ in range(8):
                self.advance()
        each = (time.perf_counter() - start) / 8
        self.step = 0
        self.model.load_state_dict(before)
        self.optimiser.state.clear()
        epochs = max(1, int(minutes * 60 / (each * self.per_epoch)))
        console.print(f"{self.args.batch / each:.0f} pictures/s: {epochs} epochs fit into {minutes:g} minutes")
        return epochs

    def _save(self) -> None:
        """One file with all that the next step needs; the random draws follow from the step."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimiser.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
        about = {
            "settings": self.settings,
            "epochs": self.epochs,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "vocabulary": self.words.kept,
            "words": self.words.tokens,
        }
        metadata = {"tiny_clip": json.dumps(about)}
        copies = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        write_atomically(self.checkpoint, partial(save_file, copies, metadata=metadata))

    def _load(self) -> None:
        tensors, said = read_tensors(self.checkpoint)
        about: dict[str, Any] = json.loads(said["tiny_clip"])
        mine = {**self.settings, "vocabulary": self.words.kept, "epochs": self.epochs}
        kept = {**about["settings"], "vocabulary": about["vocabulary"], "epochs": about["epochs"]}
        if self.args.minutes:
            mine["epochs"] = kept["epochs"]  # measured when the run began
        if changed := [key for key in mine if mine[key] != kept.get(key)]:
            raise UserError(f"{self.checkpoint}: was begun with another {', '.join(changed)}; give another --out")
        self.epochs, self.step, self.seconds = about["epochs"], about["step"], about["seconds"]
        self.curve = [(step, loss) for step, loss in about["curve"]]
        state = {name: tensors[f"model.{name}"] for name in self.model.state_dict()}
        self.model.load_state_dict(state)
        for name, parameter in self.model.named_parameters():
            moments = {moment: tensors[f"{moment}.{name}"] for moment in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}
        console.print(f"going on at step {self.step} of {self.steps}")


def _schedule(share: float) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if share < _WARMUP:
        return (share + 1e-3) / (_WARMUP + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (share - _WARMUP) / (1 - _WARMUP)))


def _moved(picture: Any, draw: np.random.Generator) -> Any:
    """Random flip, black border and crop of ``(H, W, 3)``."""
    height, width = picture.shape[:2]
    padded = np.pad(picture[:, ::-1] if draw.random() < 0.5 else picture, ((_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    y, x = draw.integers(0, 2 * _PAD + 1, 2)
    return padded[y : y + height, x : x + width]


def _recoloured(pictures: Tensor, draw: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation of each picture, changed a little."""
    factors = torch.from_numpy(draw.uniform(1 - _JITTER, 1 + _JITTER, (3, len(pictures), 1, 1, 1)).astype(np.float32))
    pictures = pictures * factors[0]
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * factors[1]
    grey = pictures.mean(dim=1, keepdim=True)
    return (grey + (pictures - grey) * factors[2]).clamp(0, 1)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/tiny_clip", help="what ships, and the checkpoint")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/tiny_clip_pictures", help="rendered pictures")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=60_000, help="RGB pictures; 6 %% of NIR and TIR come on top")
    parser.add_argument("--person-worlds", type=int, default=40)
    parser.add_argument("--vehicle-worlds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minutes", type=float, help="as many epochs as fit, measured once at the start")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=2, help="of training; another number rounds differently")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes; 0 = none")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--held-out", type=int, default=100, help="identities of each held-out world")
    return parser


if __name__ == "__main__":
    main()
