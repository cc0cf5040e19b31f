"""One optimizer step: what it needs, and what it does on the device.

A step is a function of the weights, the seed and its own number: order, augmentation and dropout are drawn from
(seed, epoch) or (seed, step).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from cifarbench.compute import draw_from, widest_float
from cifarbench.config.durations import RunLength
from cifarbench.config.optim import PlateauConfig
from cifarbench.config.schema import TrainConfig
from cifarbench.data.augment import Augment
from cifarbench.data.batches import steps_per_epoch
from cifarbench.kernels import gpu
from cifarbench.kernels.modules import use_kernels
from cifarbench.models.whitening import Whitening
from cifarbench.optim.muon import Muon
from cifarbench.optim.optimizers import build_optimizer
from cifarbench.optim.schedules import Plateau, factor
from cifarbench.seeds import derive
from cifarbench.training.averaging import Average
from cifarbench.training.feed import Feed
from cifarbench.training.health import Health
from cifarbench.training.losses import loss_sum
from cifarbench.training.phases import Phases
from cifarbench.training.replay import Rates, Replay, records_steps
from cifarbench.training.setting import Progress, Setting
from cifarbench.training.sync_norm import synchronise_norms


class Steps:
    """The model, optimizer, schedule and progress of a run, and its steps."""

    def __init__(self, config: TrainConfig, model: nn.Module, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.trainer = trainer = config.trainer
        layout = torch.channels_last if trainer.channels_last else torch.contiguous_format
        self.model = model.to(setting.compute.device).to(memory_format=layout)
        if trainer.sync_norm and setting.world.size > 1:
            synchronise_norms(self.model)
        if setting.compute.own_kernels:
            use_kernels(self.model, setting.compute.device, setting.compute.precision)
        self.forward = torch.compile(model, dynamic=False, mode=trainer.compile_mode) if trainer.compile else model
        self.optimizer = build_optimizer(self.model, config.optim, setting.compute.device, setting.compute.precision)
        self.scaler = torch.amp.GradScaler(setting.compute.device.type, enabled=setting.compute.precision == "fp16")
        self.ema = Average(self.model, self.trainer.ema) if self.trainer.ema else None
        steps = steps_per_epoch(len(setting.train), trainer.batch_size, trainer.limit_batches, trainer.drop_last)
        self.length = RunLength(self.trainer.epochs, steps)
        self.phases = Phases(self.trainer, self.length)
        self.stems = [module for module in model.modules() if isinstance(module, Whitening)]
        self.factor = factor(config.scheduler, self.length)
        self.plateau = Plateau(config.scheduler if isinstance(config.scheduler, PlateauConfig) else None)
        is_whole = not (trainer.limit_batches or trainer.overfit_batch or setting.world.size > 1)
        augment = Augment(config.augment, *setting.statistics, channels_last=trainer.channels_last)
        is_gpu = setting.compute.device.type == "cuda"
        self.gpu_kernels = is_gpu and setting.compute.own_kernels
        self.feed = Feed(augment, config.seed, is_whole and is_gpu, self.gpu_kernels)
        self.progress = Progress()
        self.totals = torch.zeros(3, dtype=widest_float(setting.compute.device), device=setting.compute.device)
        self.health = Health(setting.compute.device)
        is_recorded = records_steps(trainer, setting.compute, setting.world.size)
        self.replay = Replay(self._whole_step) if is_recorded else None
        self.rates = Rates(self.optimizer, setting.compute.device) if is_recorded else None
        if self.gpu_kernels and isinstance(self.optimizer, Muon):
            from cifarbench.kernels import gpu_muon  # which needs Triton

            self.optimizer.kernels = gpu_muon

    def step(self, positions: Tensor, lr: float, share: float, counted: float | None = None) -> Tensor:
        """One optimizer step on the images at `positions`, (B,) int64; returns its mean loss.

        It is taken at `share` of the way to the run's end, and `counted` of its planned steps where that is another.
        """
        counted = share if counted is None else counted
        train, epoch, size = self.setting.train, self.progress.epoch, self.phases.size(share, counted)
        for stem in self.stems:
            stem.bias.requires_grad_(not self.phases.stem_bias_until.is_over(share, counted))
        if self.ema and not self.phases.ema_start.is_over(share, counted):
            self.ema.restart()
        mine = self.setting.world.share(positions)
        draw_from(derive(self.config.seed, "step", self.progress.step, self.setting.world.rank), mine.device)
        micros = mine.tensor_split(self.setting.world.passes(len(positions), self.trainer.micro_batch))
        if self.replay:
            kind = [stem.bias.requires_grad for stem in self.stems], self.ema and self.ema.starts
            loss = self.replay(str(kind), *self.feed(train, mine, epoch, size))
            self.health.note(self.progress.step + 1, lr, loss)
        else:
            loss = torch.zeros((), device=mine.device)
            for micro in micros:
                loss += self._accumulate(*self.feed(train, micro, epoch, size), len(positions))
            loss = self.setting.world.add_gradients(self.model, loss)
            self.health.note(self.progress.step + 1, lr, loss)
            self._update()
        if self.ema:
            self.ema.n_averaged += 1
        return loss

    def _whole_step(self, images: Tensor, targets: Tensor) -> Tensor:
        """All that a step does on the device with its batch, which is one pass; returns the mean loss."""
        loss = self._accumulate(images, targets, len(images))
        self._update()
        return loss

    def _accumulate(self, images: Tensor, targets: Tensor, batch: int) -> Tensor:
        """Add the gradient of these images as their part of a batch of `batch`; returns their part of its loss."""
        with self.setting.compute.autocast():
            logits = self.forward(images)
        smoothing = self.trainer.label_smoothing
        minimised = self.trainer.loss
        if self.gpu_kernels and targets.ndim == 1 and minimised == "cross_entropy":
            # They come with recorded steps, and so with batches in one pass.
            loss = gpu.CrossEntropy.apply(logits, targets, smoothing, self.totals)
            loss.backward()
            return loss.detach()
        total = loss_sum(logits.float(), targets, minimised, smoothing)
        loss = total / batch
        self.scaler.scale(loss).backward()
        labels = targets if targets.ndim == 1 else targets.argmax(1)
        right = (logits.detach().argmax(1) == labels).sum()
        seen = torch.full_like(right, len(labels))
        self.totals += torch.stack([total.detach(), right, seen]).to(self.totals.dtype)
        return loss.detach()

    def _update(self) -> None:
        """One step of the optimizer, and of the average, by the gradients, which are gone then."""
        self.scaler.unscale_(self.optimizer)
        self.move()
        if self.ema:
            self.ema.take(self.model)

    def move(self) -> None:
        """The optimizer's step by gradients that are no longer scaled; they are gone then."""
        if self.trainer.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.clip_norm)
        with self.lent_rates():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def lent_rates(self) -> AbstractContextManager[None]:
        """Within it the optimizer steps as it does in this run: where steps are recorded, by rates on the device."""
        return self.rates.lent() if self.rates else nullcontext()

    def _set_rate(self, share: float, counted: float) -> float:
        """Set the learning rate for the step at this place in the run, and return it."""
        self.scale_rates(self.factor(share, counted) * self.plateau.scale)
        return self._rate()

    def scale_rates(self, scale: float) -> None:
        """Set every learning rate to this part of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
        if self.rates:
            self.rates.set(scale)

    def _rate(self) -> float:
        """The learning rate now, that of the first group: read from the optimizer, whose state outlives a kill."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group["initial_lr"] * self.config.optim.lr
