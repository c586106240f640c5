"""The recipe of section 4.2, one readable loop.

Processes. The sampler yields global batches. Each process runs the frozen backbone on its share; the rest sees the
global batch (``distributed``).
"""

import math
import signal
import time
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dmpt.adapter.calibration import remove as remove_calibration
from dmpt.adapter.folder import save_card, save_tensors
from dmpt.base.errors import Diverged, UserError, one_line
from dmpt.base.stopping import Stopped, interrupts
from dmpt.base.terminal import bar, console
from dmpt.data.loader import Batch
from dmpt.data.sampler import shard
from dmpt.embed.extract import Seen, look
from dmpt.extensions.assemble import assemble
from dmpt.extensions.distillation import both_views
from dmpt.extensions.ema import EMA
from dmpt.extensions.prompts_from_data import start_prompts
from dmpt.retrieval.metrics import Metrics
from dmpt.retrieval.metrics import evaluate as score
from dmpt.runtime.torch import PRECISIONS
from dmpt.settings.config import Config
from dmpt.settings.rules import check
from dmpt.settings.saved import write_settings
from dmpt.training import announce, folder
from dmpt.training.data import read
from dmpt.training.distributed import anyone, average_gradients, gather, join_processes, once_a_node, partners
from dmpt.training.log import Log, cut_log, summary_writer
from dmpt.training.schedule import learning_rate
from dmpt.training.start import Start
from dmpt.training.state import STATE, Progress, State, identity

_SATURATED = 0.01
"""The text loss counts as saturated when it first falls below this, the mean over the modalities."""


class Trainer:
    """One training run.

    Args:
        config: the settings.
        out: run folder.
        resume: go on with the run in ``out``, if it has saved anything.
        skip_broken: leave out samples with unreadable images, counted and listed.
        replan: ``resume`` may give another number of epochs than the run was planned with.

    Raises:
        UserError: settings, data, weights or the folder are not as they must be.
    """

    def __init__(
        self, config: Config, out: Path, resume: bool = False, skip_broken: bool = False, replan: bool = False
    ):
        check(config)
        folder.check_folder(out, resume)
        config = folder.as_begun(config, out)
        start = None if config.init is None or (out / STATE).exists() else Start.find(config.init)
        if config.train.tensorboard:
            summary_writer()
        self.precision = PRECISIONS[config.train.precision]
        if config.train.precision == "fp16" and not torch.cuda.is_available():
            raise UserError("train.precision fp16 needs a GPU: its gradients overflow on a CPU; set bf16 or fp32")
        self.accelerator = join_processes(config.train.precision)
        self.out, self.main = out, self.accelerator.is_main_process
        console.quiet = not self.main
        shard(range(config.train.ids * config.train.instances), 0, self.accelerator.num_processes)  # it must divide
        with partners(self.accelerator):
            self.data = once_a_node(lambda: read(config, skip_broken), self.accelerator)
        self.progress = Progress()
        taken = self._build(config, start)
        self.seen: Seen | None = None  # what was looked at last
        self._held = ExitStack()  # holds the folder from here to the end of ``fit``
        said = [*announce.lines(self.config, self.data, self.model), *taken]
        try:
            with partners(self.accelerator):
                going_on = self._open(resume, replan)
        except BaseException:
            self.close()
            raise
        if resume:
            said += announce.resumed(self.config, self.progress) if going_on else ["nothing saved yet: starting anew"]
        console.print("\n".join(map(one_line, said)))

    def _build(self, config: Config, start: Start | None) -> list[str]:
        """Network and optimiser, on the device and in the precision of the run; returns what is to say of its start."""
        self.model = assemble(config, len(self.data.labels), self.data.dataset.object)
        self.network, self.objective, tower = self.model.network, self.model.objective, self.model.tower
        data = replace(config.data, value_range=self.data.value_range)
        data = replace(data, mean=data.mean or tower.mean, std=data.std or tower.std)
        backbone = replace(config.backbone, grid=tower.grid)  # so that it is the same when this is loaded again
        self.config = replace(
            config, data=data, backbone=backbone, train=replace(config.train, select=self.data.select)
        )
        self.network.to(self.accelerator.device).train()
        if self.precision != torch.float32:
            self.network.backbone.keep_in(self.precision)
        taken = []
        if start is not None:
            taken.append(start.put_into(self.model, self.config))
            self.progress.history.append(start.event())
        elif self.config.semantic.init == "data" and not (self.out / STATE).exists():
            with self.accelerator.autocast():
                start_prompts(self.network, self.data.records, self.config)
        self.trained = self.network.trained()
        self.ema = EMA(self.network, config.train.ema) if config.train.ema else None
        adam = torch.optim.Adam(self.trained.values(), lr=config.train.lr, weight_decay=config.train.weight_decay)
        self.optimizer = self.accelerator.prepare(adam)
        self.card = announce.card_of(self.config, self.data, self.model)
        who = identity(self.config, self.data, self.model, self.accelerator.num_processes)
        self.state = State(self.out, self.network, adam, self.accelerator.scaler, self.ema, who)
        return taken

    def _open(self, resume: bool, replan: bool) -> bool:
        """The run folder, made last: what fails before leaves none behind. Returns whether there was a state in it."""
        self.accelerator.wait_for_everyone()  # all have seen that the folder is free
        if self.main:
            self._held.enter_context(folder.held(self.out, self.config, resume, replan))
        self.accelerator.wait_for_everyone()
        going_on = (self.out / STATE).exists()
        if going_on:
            self.progress = self.state.load(replan)
            if self.main:
                cut_log(self.out, self.progress.step)
                write_settings(self.out, self.config)  # its files may be elsewhere by now, its epochs more
        self.accelerator.wait_for_everyone()
        self._holding = True
        return going_on

    def close(self) -> None:
        """Let others train in the folder; ``fit`` does so at its end."""
        self._holding = False
        self._held.close()

    def fit(self) -> None:
        """Train to the end, or to a signal (``base.stopping``), which saves and leaves.

        Raises:
            Diverged: a loss or a gradient is not finite.
            UserError: a file cannot be written, or this trainer has ended.
            Stopped: the user stopped the run; its state is saved.
        """
        if not self._holding:
            raise UserError(f"this trainer of {self.out} has ended; open another one with resume")
        recipe, progress = self.config.train, self.progress
        counts = [len(self.data.sampler.epoch(e)) for e in range(recipe.epochs)]  # they differ
        share = self.accelerator.process_index, self.accelerator.num_processes
        with (
            closing(self),
            partners(self.accelerator),
            Log(self.out, recipe.tensorboard, self.main, progress.step) as log,
            bar() as display,
            interrupts() as stopping,
        ):
            task = display.add_task("training", total=sum(counts), completed=progress.step, note="")
            saved = progress.step
            for event in progress.news:
                log.write({"epoch": progress.epoch, **event})
            for epoch in range(progress.epoch, recipe.epochs):
                count, first, steps = counts[epoch], progress.position, list[float]()
                started = began = time.perf_counter()
                for batch in self.data.batches(self.config, epoch, first, *share):
                    line = self._step(batch, count)
                    steps.append(time.perf_counter() - began)
                    log.write(line)
                    note = " ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
                    display.update(task, completed=progress.step, note=f"lr {line['lr']:.1e} {note}")
                    if progress.position == count:
                        seconds = (time.perf_counter() - started) * count / (count - first)
                        log.write_epoch(progress.step, epoch, seconds, steps)
                        if not console.is_terminal:  # no bar there
                            left = seconds * (recipe.epochs - epoch - 1) / 60
                            console.print(
                                f"epoch {epoch + 1} of {recipe.epochs}: {note}; about {left:.1f} minutes left"
                            )
                        self._select(log)
                        progress.epoch, progress.position = epoch + 1, 0
                    whole = progress.position % recipe.accumulate == 0  # no gradient is waiting for its step
                    stop = whole and anyone(bool(stopping()), self.accelerator)
                    if stop or (whole and progress.step - saved >= recipe.save_every):
                        self._save()
                        saved = progress.step
                    if stop:
                        raise Stopped(stopping() or signal.SIGTERM)  # or another process was told
                    began = time.perf_counter()
            self._save()

    def _step(self, batch: Batch, count: int) -> dict[str, Any]:
        """One batch forward and backward, and the optimiser's step when enough batches have been seen."""
        recipe, progress = self.config.train, self.progress
        done = (progress.epoch + progress.position / count) / recipe.epochs
        lr = learning_rate(done, self.config)
        started = progress.position - progress.position % recipe.accumulate
        group = min(recipe.accumulate, count - started)
        terms = self._terms(batch)
        each = torch.stack(list(terms.values()))
        self.accelerator.backward(each.sum() / group)  # Eq. 17
        losses = dict(zip(terms, each.tolist(), strict=True))  # waits for a GPU, so once, when all is queued there
        for name, value in losses.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"loss term {name} is {value} at step {progress.step + 1} (lr {lr:.2e}); the run stopped and what "
                    "was saved is intact; lower train.lr, set train.clip, or use train.precision fp32"
                )
        progress.step += 1
        progress.position += 1
        line = {"step": progress.step, "epoch": progress.epoch, "lr": lr, "loss": sum(losses.values())}
        if progress.position == started + group:
            line["grad_norm"] = self._update(lr)
        text = self.config.text
        if text.loss == "modality" and "text" in losses and progress.saturated is None:
            modalities = len(self.config.data.modalities) if text.reduction == "sum" else 1
            if losses["text"] / (self.config.loss.text * modalities) < _SATURATED:
                progress.saturated = progress.step
                line["text_saturated"] = True
        return {**line, "losses": losses}

    def _terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighted terms of the loss of the global batch, by name."""
        accelerator, loss = self.accelerator, self.config.loss
        images, labels, present, subset = (part.to(accelerator.device, non_blocking=True) for part in batch)
        views = [present, subset] if self.config.missing.view == "both" else [present]
        masks = [None if batch.present.all() else present, *views[1:]]
        with accelerator.autocast():
            tokens = self.network.tokens(images, masks[0])  # the tower sees each image alone: one pass for all views
            outputs = [self.network.read(tokens, mask) for mask in masks]
        whole, *parts = (gather(output, view, accelerator) for output, view in zip(outputs, views, strict=True))
        labels = accelerator.gather(labels)  # shards are contiguous: the global order
        if not parts:
            return self.objective(whole, labels)
        return both_views(self.objective, whole, parts[0], labels, loss.distil, loss.metric_scale)

    def _update(self, lr: float) -> float:
        """The optimiser's step; returns the gradient's norm before clipping."""
        average_gradients(self.trained.values(), self.accelerator)
        norm = float(self.accelerator.clip_grad_norm_(self.trained.values(), self.config.train.clip or math.inf))
        scaler = self.accelerator.scaler  # it skips such a step by itself and halves its scale, which helps down to 1
        if not math.isfinite(norm) and (scaler is None or scaler.get_scale() < 1):
            raise Diverged(
                f"the gradient is not finite at step {self.progress.step} (lr {lr:.2e}); the run stopped and what was "
                "saved is intact; lower train.lr, or use train.precision fp32"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.progress.step)
        return norm if math.isfinite(norm) else 0.0  # JSON has no infinity

    def _select(self, log: Log) -> None:
        """At the end of an epoch: evaluate where asked to, and keep the best."""
        recipe, progress = self.config.train, self.progress
        last = progress.epoch + 1 == recipe.epochs
        if self.data.evaluated is None or not (last or (progress.epoch + 1) % recipe.eval_every == 0):
            return
        if self.main:
            metrics = self.validate()
            log.write({"step": progress.step, "epoch": progress.epoch, recipe.select: metrics.to_dict()})
            console.print(
                f"epoch {progress.epoch + 1}: {recipe.select} mAP {metrics.mAP:.1f}, rank-1 {metrics.rank1:.1f} "
                f"({metrics.valid_queries} of {metrics.queries} queries valid)"
            )
            if progress.best is None or metrics.mAP > progress.best:
                progress.best, progress.best_step = metrics.mAP, progress.step
                self._save_adapter("best")
        self.accelerator.wait_for_everyone()

    def _as_saved(self) -> AbstractContextManager[None]:
        """Inside, the network is the one that adapters hold."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def look(self) -> Seen:
        """What the network that adapters hold says of what is evaluated along the way; kept as ``seen``."""
        assert self.data.evaluated is not None
        with self._as_saved():
            self.seen = look(self.network, self.config.data, self.data.evaluated, self.config.train.precision)
        self.network.train()
        return self.seen

    def validate(self) -> Metrics:
        """The numbers of that."""
        return score(*self.look(), self.data.protocol)

    def _save(self) -> None:
        """State and last adapter; each is replaced in one rename."""
        if self.main:
            self.state.save(self.progress)
            self._save_adapter("last")
        self.accelerator.wait_for_everyone()

    def _save_adapter(self, which: str) -> None:
        progress = self.progress
        remove_calibration(self.out / which)  # it was that of other tensors
        metrics: dict[str, Any] = {"which": which, "step": progress.step, "text_saturated_at": progress.saturated}
        if progress.best is not None:
            metrics |= {f"best_{self.config.train.select}_mAP": progress.best, "best_step": progress.best_step}
        with self._as_saved():
            save_tensors(self.out / which, self.network, progress.step)
        save_card(self.out / which, replace(self.card, metrics=metrics, history=tuple(progress.history)))
