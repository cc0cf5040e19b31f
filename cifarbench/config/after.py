"""The keys of what comes after training: `eval`, `report`, `predict`, `export` and `ensemble`."""

from __future__ import annotations

from dataclasses import dataclass

from cifarbench.config.keys import key
from cifarbench.config.schema import DEVICES, PLUGINS, PRECISIONS, ROOT, THREADS, TTA, TTAS
from cifarbench.errors import ConfigError

WHICH = ("tested", "best", "last")
FORMATS = ("onnx", "torch_export", "safetensors")
_THREADS_OF_RUN = "CPU threads; null: as the run used on a CPU, else all cores."
_WHICH = "Which checkpoint of the run; tested: the one that its test scored."


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Everything that `cifarbench eval` needs."""

    run: str | None = key("Run directory to score.")
    checkpoint: str | None = key("Checkpoint file to score, instead of a run directory.")
    which: str = key(_WHICH, choices=WHICH)
    portion: str = key("Which images to score.", choices=["test", "val", "train"])
    tta: str = key(f"{TTA} auto: as the run was tested.", choices=("auto", *TTAS))
    device: str = key("Where to compute.", choices=DEVICES)
    precision: str = key("Number format; auto: as the run was scored.", choices=PRECISIONS)
    threads: int | None = key(_THREADS_OF_RUN, ge=1, le=1024)
    root: str | None = key(ROOT)
    plugins: tuple[str, ...] = key(PLUGINS)

    def __post_init__(self) -> None:
        _one_model(self.run, self.checkpoint)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Everything that `cifarbench report` needs."""

    run: tuple[str, ...] = key("Run directories: one for its page, several for a comparison.")
    out: str | None = key(
        "The page's file; null: report.html in the run, or one in outputs/report/ for several. The numbers of "
        "report.html go to report.json beside it, those of NAME.html to NAME.report.json."
    )
    images: tuple[int, ...] = key(
        "Images by number in published order whose activation and Grad-CAM maps are drawn; []: validation images.",
        ge=0,
        lt=60_000,
    )
    root: str | None = key(ROOT)
    threads: int | None = key(THREADS, ge=1, le=1024)
    plugins: tuple[str, ...] = key(PLUGINS)

    def __post_init__(self) -> None:
        if not self.run:
            raise ConfigError("`run` names no run directory; type `cifarbench report DIR` or several.")
        if self.out is not None and not self.out.lower().endswith((".html", ".htm")):
            raise ConfigError(f"`out` is {self.out!r}; a page's name must end in .html.")
        if len(self.images) > 24:
            raise ConfigError(f"`images` names {len(self.images)} images; a page draws the maps of at most 24.")
        if self.images and len(self.run) > 1:
            raise ConfigError("`images` is for the page of one run; leave it out of a comparison.")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Everything that `cifarbench predict` needs."""

    run: str | None = key("Run directory whose model answers.")
    checkpoint: str | None = key("Checkpoint file, instead of a run directory.")
    which: str = key(_WHICH, choices=WHICH)
    images: tuple[str, ...] = key("Image files, folders and patterns such as 'photos/**/*.png'.")
    top: int = key("Classes shown of each image, the likeliest first.", unit="classes", ge=1, le=10)
    format: str = key("Form of the answer; auto: as the name of `out` says, else a table.", choices=[
        "auto", "table", "json", "csv"])  # fmt: skip
    out: str | None = key("File for the answer, .json, .csv or .txt; null: the console.")
    tta: str = key(f"{TTA} auto: as the run was tested.", choices=("auto", *TTAS))
    device: str = key("Where to compute.", choices=DEVICES)
    precision: str = key("Number format; auto: as the run was scored.", choices=PRECISIONS)
    threads: int | None = key(_THREADS_OF_RUN, ge=1, le=1024)
    plugins: tuple[str, ...] = key(PLUGINS)

    def __post_init__(self) -> None:
        _one_model(self.run, self.checkpoint)
        if not self.images:
            raise ConfigError("`images` names no image; type `cifarbench predict run=DIR IMAGE…`.")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Everything that `cifarbench export` needs."""

    run: str | None = key("Run directory whose model is exported.")
    checkpoint: str | None = key("Checkpoint file, instead of a run directory.")
    which: str = key(_WHICH, choices=WHICH)
    format: str = key("File format; safetensors holds weights alone, the others a graph.", choices=FORMATS)
    normalise: bool = key("Whether the graph takes pixels in 0..1 and normalises; false: it takes normalised pixels.")
    out: str | None = key(
        "The file; null: export/model.onnx, .pt2 or .safetensors in the run, or beside the checkpoint."
    )
    root: str | None = key(ROOT)
    threads: int | None = key(THREADS, ge=1, le=1024)
    plugins: tuple[str, ...] = key(PLUGINS)

    def __post_init__(self) -> None:
        _one_model(self.run, self.checkpoint)


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Everything that `cifarbench ensemble` needs."""

    run: tuple[str, ...] = key("Run directories, two or more, of one dataset and split.")
    average: str = key(
        "predictions: the mean of the stored probabilities; weights: one model of the mean weights.",
        choices=["predictions", "weights"],
    )
    out: str = key("Folder for the result; each ensemble gets a folder of its own in it.")
    root: str | None = key(ROOT)
    threads: int | None = key(THREADS, ge=1, le=1024)
    plugins: tuple[str, ...] = key(PLUGINS)

    def __post_init__(self) -> None:
        if len(self.run) < 2:
            raise ConfigError("`run` must name two or more run directories: `cifarbench ensemble DIR DIR…`.")


def _one_model(run: str | None, checkpoint: str | None) -> None:
    if (run is None) == (checkpoint is None):
        raise ConfigError("`run` and `checkpoint` name the model; give exactly one, e.g. run=outputs/train/…")
