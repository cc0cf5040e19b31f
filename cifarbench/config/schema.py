"""The keys of `train`, `bench` and `data`, section by section; YAML in `conf/` holds their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cifarbench.config.augment import AugmentConfig
from cifarbench.config.durations import check_span, seconds
from cifarbench.config.keys import key
from cifarbench.errors import ConfigError

SPLITS = ("last20", "official", "train_last20")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TTAS = ("none", "flip", "multicrop")
TTA = (
    "Views averaged in the test: none, the image; flip, it and its mirror; multicrop, these by a quarter each, and by "
    "an eighth each the image moved by 1 px up left and by 1 px down right, with their mirrors."
)
THREADS = "CPU threads; null: all cores."
ROOT = "Folder of cifar-10-batches-py/; null: $CIFARBENCH_DATA, else the cache."
PLUGINS = "Python files with models, augmentations or optimizers of your own, as named when training."
KERNELS = ("auto", "torch")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
LOSSES = ("cross_entropy", "mse", "mae")
DEVICES = ("auto", "cpu", "cuda", "mps")
RECORDED = ("muon", "sgd", "adam", "adamw")  # optimizers that can take their rate from the device


@dataclass(frozen=True, kw_only=True)
class Cifar10Config:
    """The real CIFAR-10 (Krizhevsky, 2009)."""

    name: str = key("The dataset.", choices=["cifar10"])
    root: str | None = key(ROOT, neutral=True)
    download: bool = key("Whether a missing dataset is fetched from the mirrors.", neutral=True)
    mirrors: tuple[str, ...] = key("Addresses of cifar-10-python.tar.gz, tried in order.", neutral=True)


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded drawn images: a stand-in for demos and tests, never mixed with CIFAR-10."""

    name: str = key("The dataset.", choices=["synthetic"])
    size: int = key("How many images are drawn.", unit="images", ge=600, le=60_000)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images are trainable, validation and test."""

    name: str = key("Which images are test, never trained or selected on.", choices=SPLITS)
    val_fraction: float = key("Stratified share of the trainable images kept for validation.", ge=0, le=0.5)
    seed: int = key("Seed of the validation draw, apart from the run's seed.", ge=0, lt=2**63)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The loop: how long, on what, and what it writes."""

    epochs: int = key("Passes over the training images.", unit="epochs", ge=1, le=100_000)
    max_time: str | None = key(
        "Wall-clock limit for the whole run, test included: 90s, 35m, 2h; null: none.", unit="time"
    )
    batch_size: int = key("Images per optimizer step, over all processes.", unit="images", ge=1, le=60_000)
    micro_batch: int | None = key("Images per forward and backward pass; gradients add up to the batch.", ge=1)
    drop_last: bool = key("Whether an epoch leaves out its last batch where that would be smaller than the others.")
    sizes: tuple[int, ...] = key("Sides to which images are shrunk early on; [] for none.", unit="px", ge=8, le=32)
    size_until: tuple[str, ...] = key(
        "When each of `sizes` ends, as spans from the start: [3epochs,6epochs].", unit="spans"
    )
    stem_bias_until: str = key(
        "When the whitening layer's bias is frozen, and with it the whole layer: 3epochs, 100%.", unit="span"
    )
    loss: str = key(
        "What training minimises: cross_entropy, or mse or mae of the softmax probabilities (mean over the classes); "
        "validation and test report cross-entropy.",
        choices=LOSSES,
    )
    label_smoothing: float = key("Probability spread evenly over all classes.", ge=0, lt=1)
    clip_norm: float = key("Largest gradient norm; 0 switches clipping off.", ge=0)
    ema: float = key("Decay per step of averaged weights, which are then validated and tested; 0: off.", ge=0, lt=1)
    ema_start: str = key(
        "When averaging begins, a span from the start: 50%, 3epochs; before it the average follows.", unit="span"
    )
    early_stopping: int = key("Validations without a better accuracy before the run ends; 0: off.", ge=0)
    validate_every: int = key("Epochs between validations; 0: never.", unit="epochs", ge=0)
    checkpoint_every: int = key("Steps between checkpoints inside an epoch; 0: none.", ge=0, neutral=True)
    checkpoint_epochs: int = key(
        "Epochs between checkpoints at their ends; 0: the last and the best epochs alone.", unit="epochs", ge=0,
        neutral=True,
    )  # fmt: skip
    sync_norm: bool = key("Whether batch norm sees the batches of all processes; false: each its own.")
    precision: str = key("Number format of the passes; weights stay fp32.", choices=PRECISIONS)
    device: str = key("Where to compute.", choices=DEVICES, neutral=True)
    threads: int | None = key(THREADS, ge=1, le=1024, neutral=True)
    channels_last: bool = key("Whether tensors lie in memory channel by channel last (NHWC).")
    compile: bool = key("Whether torch.compile builds the model.")
    compile_mode: str = key(
        "How: on a GPU reduce-overhead replays a step's kernels as CUDA graphs, max-autotune times kernels as well.",
        choices=COMPILE_MODES,
    )
    cuda_graphs: bool = key(
        "Whether a GPU is given each step as one CUDA graph, recorded once, and not kernel by kernel.",
    )
    kernels: str = key(
        "auto: on a CPU with a C compiler, and in CUDA graphs, our own operations where they are faster; torch: never.",
        choices=KERNELS, neutral=True,
    )  # fmt: skip
    untimed_steps: int = key(
        "Steps in each phase, on random labels and undone, before the clocks of training start; 0: none.",
        unit="steps", ge=0, le=1000, neutral=True,
    )  # fmt: skip
    deterministic: bool = key("Whether only kernels are used that repeat bit for bit.")
    resume: str = key("auto: go on where the run directory stands; never; or a run directory to go on.", neutral=True)
    fork: str | None = key(
        "Run, for its last weights, or checkpoint that a new run begins with; schedule and optimizer start anew."
    )
    limit_batches: int = key("Batches per epoch and validation; 0: all. For debugging.", unit="batches", ge=0)
    overfit_batch: bool = key("Whether every step trains on the same first batch. For debugging.")
    test: bool = key("Whether the seal is opened after training, once, and the test part scored.", neutral=True)
    tta: str = key(TTA, choices=TTAS, neutral=True)
    tensorboard: bool = key("Whether TensorBoard logs are written.", neutral=True)
    report: bool = key("Whether report.html, the run as a page, is written at the end.", neutral=True)
    progress: str = key("Console display.", choices=["auto", "live", "plain", "none"], neutral=True)

    def __post_init__(self) -> None:
        if self.max_time is not None:
            seconds(self.max_time, "trainer.max_time")
            if self.untimed_steps:
                raise ConfigError(
                    f"`trainer.untimed_steps` is {self.untimed_steps} and `trainer.max_time` is {self.max_time!r}, "
                    "which counts every second; set one of them alone."
                )
        if self.compile_mode != "default" and not self.compile:
            raise ConfigError(
                f"`trainer.compile_mode` is {self.compile_mode} and `trainer.compile` is false; "
                "a mode needs trainer.compile=true."
            )
        if self.cuda_graphs and (self.micro_batch or self.compile_mode in ("reduce-overhead", "max-autotune")):
            raise ConfigError(
                f"`trainer.cuda_graphs` is true, `trainer.micro_batch` {self.micro_batch} and `trainer.compile_mode` "
                f"{self.compile_mode}; a graph holds a whole batch in one pass and no other graph: set "
                "trainer.micro_batch=null and another mode, or trainer.cuda_graphs=false."
            )
        for name in ("ema_start", "stem_bias_until"):
            check_span(getattr(self, name), f"trainer.{name}")
        for index, span in enumerate(self.size_until):
            check_span(span, f"trainer.size_until[{index}]")
        if len(self.sizes) != len(self.size_until):
            raise ConfigError(
                f"`trainer.sizes` is {list(self.sizes)} and `trainer.size_until` {list(self.size_until)}; "
                "each size needs the span at which it ends."
            )
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ConfigError(
                f"`trainer.micro_batch` is {self.micro_batch}; "
                f"it must be at most `trainer.batch_size`, {self.batch_size}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that `cifarbench train` needs; the unions are chosen by each section's `name`."""

    seed: int = key("Seed of weights, order, augmentation and dropout.", ge=0, lt=2**63)
    plugins: tuple[str, ...] = key(
        "Python files with models, augmentations or optimizers of your own, run before the config is checked.",
        neutral=True,
    )
    data: Any
    split: SplitConfig
    model: Any
    augment: AugmentConfig
    optim: Any
    scheduler: Any
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        validates = self.split.val_fraction > 0 and self.trainer.validate_every > 0
        if self.trainer.early_stopping and not validates:
            raise ConfigError(
                f"`trainer.early_stopping` is {self.trainer.early_stopping} and nothing is validated; "
                "set `split.val_fraction` and `trainer.validate_every` above 0, or `trainer.early_stopping=0`."
            )
        if self.trainer.sizes and getattr(self.model, "fixed_size", False):
            raise ConfigError(
                f"`trainer.sizes` is {list(self.trainer.sizes)}, and model={self.model.name} takes images of 32 px "
                "alone here; set `trainer.sizes=[] trainer.size_until=[]`, or take another model or head."
            )
        if self.trainer.cuda_graphs and self.optim.name not in RECORDED:
            raise ConfigError(
                f"`trainer.cuda_graphs` is true and `optim.name` {self.optim.name}, whose rate a graph would not see "
                f"change; take one of {', '.join(RECORDED)}, or trainer.cuda_graphs=false."
            )
        if self.scheduler.name == "plateau" and not validates:
            raise ConfigError(
                "`scheduler.name` is 'plateau' and nothing is validated; "
                "set `split.val_fraction` and `trainer.validate_every` above 0, or take another scheduler."
            )


@dataclass(frozen=True, kw_only=True)
class BenchSection:
    """What `cifarbench bench` measures."""

    measure: str = key(
        "throughput: images per second of the loop and its parts; accuracy: whole runs, their accuracy and time.",
        choices=["throughput", "accuracy"],
    )
    against: tuple[str, ...] = key("Further configs, each as overrides of this one: ['model=vgg optim=adamw'].")
    tutorial: bool = key("Whether a tutorial-style loop over the same model is timed too (throughput).")
    rounds: int = key("Rounds in which every config is timed, after a step of warm-up (throughput).", ge=1, le=1000)
    steps: int = key("Optimizer steps per timing, at most (throughput).", unit="steps", ge=1, le=100_000)
    seconds: float = key(
        "What a timing may take: of a slow config it is fewer steps, one at least (throughput).", unit="s", gt=0
    )
    seeds: int = key("Runs of each config, with the seeds from `seed` on (accuracy).", ge=1, le=1000)
    target: float = key("Test accuracy that the mean is held against (accuracy).", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class BenchVerbConfig(TrainConfig):
    """Everything that `cifarbench bench` needs: a training config, and what to measure."""

    bench: BenchSection


@dataclass(frozen=True, kw_only=True)
class DataVerbConfig:
    """Everything that `cifarbench data` needs."""

    action: str = key("What to do.", choices=["fetch", "check", "show", "duplicates"])
    plugins: tuple[str, ...] = key("Python files with augmentations of your own, to show them.")
    seed: int = key("Seed of the augmentation that is shown.", ge=0, lt=2**63)
    rows: int = key("Images of each class that are shown.", unit="images", ge=1, le=50)
    out: str = key("Folder for what `show` and `duplicates` write.")
    threshold: float = key("Correlation of detail from which two images are near-duplicates.", ge=0.6, le=1)
    data: Any
    split: SplitConfig
    augment: AugmentConfig
