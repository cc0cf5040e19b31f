"""The training loop: batches on the device, one optimizer step after another, validation, checkpoints.

A step is a function of the weights, the seed and its own number: order, augmentation and dropout are drawn from
(seed, epoch) or (seed, step), so a run that was killed goes on bit for bit from any checkpoint.
"""

from __future__ import annotations

import math
import shlex
import time
from typing import Any

from torch import Tensor, nn

from cifarbench.compute import synchronise
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import Interrupted, NonFiniteError
from cifarbench.evaluation.metrics import loss_and_accuracy
from cifarbench.evaluation.predict import EVAL_BATCH, predict
from cifarbench.runs import shown_path
from cifarbench.training import checkpoint
from cifarbench.training.observer import Observer, StepReport
from cifarbench.training.setting import Setting
from cifarbench.training.signals import StopRequest
from cifarbench.training.state import state_of
from cifarbench.training.steps import Steps


class Training(Steps):
    """One run: its steps, and the loop over them."""

    def __init__(self, config: TrainConfig, model: nn.Module, setting: Setting, observer: Observer) -> None:
        super().__init__(config, model, setting)
        self.observer = observer
        self.epoch_end = 0.0  # of the last one, by the run's clock

    # --- the loop ------------------------------------------------------------------------------------------------

    def fit(self, request: StopRequest) -> None:
        """Train to the end of the last epoch, the time limit or early stopping, whichever comes first.

        Raises:
            Interrupted: a signal came; the last step is saved.
            NonFiniteError: a loss or weight became infinite or NaN; nothing of it was saved.
        """
        progress, trainer = self.progress, self.trainer
        self.model.train()
        while progress.epoch < trainer.epochs and not progress.ended:
            epoch = 0 if trainer.overfit_batch else progress.epoch
            order = self.feed.order(self.setting.train, epoch)
            tick = time.perf_counter()
            while progress.batch < self.length.steps_per_epoch:
                signal_number, time_share, is_over = self._agreed(request)
                if signal_number:
                    self.save()
                    raise Interrupted(self._resume_hint(), signal_number)
                if is_over:
                    progress.ended = "max_time"
                    break
                first = 0 if trainer.overfit_batch else progress.batch * trainer.batch_size
                counted = progress.step / self.length.steps
                positions = order[first : first + trainer.batch_size]
                tick = self.advance(positions, max(counted, time_share), tick, counted)
                if trainer.checkpoint_every and progress.step % trainer.checkpoint_every == 0:
                    self.save()
            if progress.batch:
                if progress.epoch + 1 < trainer.epochs and not progress.ended:
                    self._look_at_the_time(request)
                    if not progress.ended:
                        self.feed.prepare(self.setting.train, epoch + 1)  # before the device is waited for
                self._end_epoch(tick)
            elif progress.ended and progress.step:
                self.save()  # the time ran out between two epochs, of which the first need not be saved
        if progress.step and (signal_number := self._agreed(request)[0]):
            raise Interrupted(self._resume_hint(), signal_number)  # it came while the last epoch was saved

    def _look_at_the_time(self, request: StopRequest) -> None:
        """End the run with this epoch where no time is left for a further step, so that it is validated as the last."""
        if self.setting.clock.limit is not None:
            synchronise(self.setting.compute.device)  # which may be behind
            if self._agreed(request)[2]:
                self.progress.ended = "max_time"

    def _agreed(self, request: StopRequest) -> tuple[int, float, bool]:
        """The signal that came or 0, the share of the time that is gone, and whether it leaves no further step.

        They are one answer for all processes, which so do the same; it costs an exchange.
        """
        clock = self.setting.clock
        mine = [float(request.number), clock.share(), clock.share_after_step()]
        signal_number, share, share_after = self.setting.world.highest(mine)
        return int(signal_number), share, share >= 1 or (share_after > 1 and self.progress.step > 0)

    def advance(self, positions: Tensor, share: float, tick: float, counted: float | None = None) -> float:
        """Take the step at a place in the run and report it; returns the time of its end, the next one's `tick`.

        The place is `share` of the way to the end, and `counted` of the planned steps where that is another.
        """
        progress = self.progress
        lr = self._set_rate(share, share if counted is None else counted)
        loss = self.step(positions, lr, share, counted)
        progress.batch += 1
        progress.step += 1
        now = time.perf_counter()  # from step to step, so reports and checkpoints between them count too
        self.setting.clock.note_step(now - tick)
        progress.epoch_seconds += now - tick
        self._report_step(loss, lr, share)
        return now

    # --- the end of an epoch -------------------------------------------------------------------------------------

    def _end_epoch(self, tick: float) -> None:
        """Validate, record the epoch's row, keep the best, save where that is due; its last step ended at `tick`."""
        progress = self.progress
        self.health.check_losses()
        synchronise(self.setting.compute.device)
        progress.epoch_seconds += time.perf_counter() - tick  # a checkpoint came after it, or the device was behind
        progress.epoch += 1
        row = self._row()
        is_best = False
        if row["val_accuracy"] is not None:
            self.plateau.observe(row["val_loss"])
            is_best = row["val_accuracy"] > progress.best_accuracy
            progress.waited = 0 if is_best else progress.waited + 1
            if is_best:
                progress.best_accuracy, progress.best_epoch = row["val_accuracy"], progress.epoch
            if self.trainer.early_stopping and progress.waited >= self.trainer.early_stopping:
                progress.ended = progress.ended or "early_stopping"
        progress.rows.append(row)
        progress.batch, progress.epoch_seconds = 0, 0.0
        self.totals.zero_()
        self.epoch_end = self.setting.clock.elapsed()
        every = self.trainer.checkpoint_epochs
        if is_best or self._is_last or (every and progress.epoch % every == 0):
            self.save(is_best)
        self.observer.epoch(row, is_best)

    @property
    def _is_last(self) -> bool:
        """Whether the epoch that just ended is the run's last one."""
        return self.progress.epoch == self.trainer.epochs or bool(self.progress.ended)

    def _row(self) -> dict[str, Any]:
        """The line of metrics.jsonl for the epoch that just ended."""
        progress = self.progress
        loss_sum, right, seen = self._sums()
        train_seconds = progress.epoch_seconds
        started = time.perf_counter()
        val_loss, val_accuracy = self._validate()
        if val_loss is not None and not math.isfinite(val_loss):
            raise NonFiniteError(f"the validation loss became {val_loss} after step {progress.step}; lower `optim.lr`.")
        return {
            "epoch": progress.epoch,
            "step": progress.step,
            "lr": self._rate(),
            "train_loss": loss_sum / seen,
            "train_accuracy": right / seen,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "images_per_second": round(seen / max(train_seconds, 1e-9), 1),
            "seconds": round(train_seconds + time.perf_counter() - started, 3),
        }

    def _sums(self) -> list[float]:
        """Loss sum, right answers and images of the running epoch, over all processes."""
        return self.setting.world.total(self.totals.to("cpu", copy=True)).tolist()

    def _validate(self) -> tuple[float | None, float | None]:
        """Mean loss and accuracy on the validation images, or (None, None) where this epoch has no validation."""
        val, every = self.setting.val, self.trainer.validate_every
        if val is None or not every or (self.progress.epoch % every and not self._is_last):
            return None, None
        count = min(len(val), self.trainer.limit_batches * EVAL_BATCH or len(val))
        logits = self.logits(val.images[:count])
        return loss_and_accuracy(logits, val.targets[:count])

    def logits(self, images: Tensor, tta: str = "none") -> Tensor:
        """Logits (N, 10) of the weights that are scored (averaged ones where EMA is on), over all processes."""
        setting = self.setting
        setting.world.same_buffers(self.scored)
        mine = predict(
            self.scored,
            setting.world.share(images),
            setting.statistics,
            setting.compute,
            tta,
            channels_last=self.trainer.channels_last,
        )
        return setting.world.gather_rows(mine, len(images))

    @property
    def scored(self) -> nn.Module:
        """The model whose weights are validated and tested."""
        return self.ema.module if self.ema else self.model

    # --- health and reports --------------------------------------------------------------------------------------

    def _report_step(self, loss: Tensor, lr: float, share: float) -> None:
        progress = self.progress
        images = progress.batch * self.trainer.batch_size
        self.observer.step(
            StepReport(
                epoch=progress.epoch + 1,
                batch=progress.batch,
                step=progress.step,
                lr=lr,
                loss=loss,
                images_per_second=images / max(progress.epoch_seconds, 1e-9),
                share=max(share, progress.step / self.length.steps),
                elapsed=self.setting.clock.elapsed(),
            )
        )

    def _resume_hint(self) -> str:
        processes, plugins = self.setting.world.size, ",".join(self.config.plugins)
        words = [f"trainer.resume={shown_path(self.setting.checkpoints.parent)}"]
        words += [f"plugins=[{plugins}]"] if plugins else []
        start = "cifarbench" if processes == 1 else f"torchrun, {processes} processes again, -m cifarbench"
        return f"stopped after step {self.progress.step}, saved. Go on with: {start} train {shlex.join(words)}"

    def save(self, is_best: bool = False) -> None:
        """Write last.pt, and best.pt beside it where this epoch is the best so far; by the first process alone."""
        self.health.check_losses()
        self.health.check_weights(self.model, self.progress.step)
        self.progress.totals = self._sums()
        if not self.setting.world.is_first:
            return
        checkpoint.save(state_of(self), self.setting.checkpoints / "last.pt")
        if is_best:
            checkpoint.copy(self.setting.checkpoints / "last.pt", self.setting.checkpoints / "best.pt")
