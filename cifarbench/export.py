"""A trained model as a file for use elsewhere: ONNX, torch.export, or safetensors; read back and compared."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cifarbench.data.load import load_images
from cifarbench.data.split import split
from cifarbench.errors import ConfigError, IntegrityError, ResourceError
from cifarbench.seeds import derive
from cifarbench.training.restore import Trained

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": (), "safetensors": ("safetensors",)}
_CHECKED = 64  # images on which the file is compared with the model
_TOLERANCE = 1e-3  # of a logit, per unit of the largest one


@dataclass(frozen=True)
class Exported:
    """What was written and how it was checked: `difference` is the largest of a logit, None for weights alone."""

    path: Path
    images: int
    source: str
    difference: float | None


class Graph(nn.Module):
    """[Normalisation,] model: images `(N, 3, 32, 32)` float32 to logits `(N, 10)`."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained, normalise: bool) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in trained.statistics)
        self.normalise = normalise
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.model = trained.model

    def forward(self, images: Tensor) -> Tensor:
        """Logits of pixels in 0..1, or of normalised pixels where normalisation is left out."""
        return self.model((images - self.mean) / self.std if self.normalise else images)


def export(trained: Trained, form: str, normalise: bool, path: Path) -> Exported:
    """Write the model to `path` in the format `form`, read it back, and compare it with the model.

    Args:
        trained: the model, on the CPU.
        form: a key of `SUFFIXES`.
        normalise: whether a graph takes pixels in 0..1; the statistics stand in the metadata in any case.
        path: the file; it is replaced only by one that passed the comparison.

    Raises:
        ResourceError: a package that the format needs is not installed.
        IntegrityError: the written file answers otherwise than the model.
    """
    _require(form)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if form == "safetensors":
            result = _write_weights(trained, path, temporary)
        else:
            result = _write_graph(trained, form, normalise, path, temporary)
        os.replace(temporary, path)
        return result
    finally:
        temporary.unlink(missing_ok=True)


def _require(form: str) -> None:
    missing = [name for name in _NEEDS[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"`format` is {form!r}, which needs {', '.join(missing)}: pip install {' '.join(missing)}, "
            "or install cifarbench with its extra [export]."
        )


def metadata(trained: Trained, normalise: bool | None) -> dict[str, str]:
    """What a user of the file must know, as text: classes, statistics, the input, and where the weights come from."""
    passport = trained.passport
    mean, std = trained.statistics
    known = {
        "classes": json.dumps(list(trained.classes)),
        "model": str(trained.config.model.name),
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "dataset": f"{passport['dataset'].get('name')} {passport['dataset']['fingerprint']}",
        "split": f"{passport['split'].get('name')} {passport['split']['fingerprint']}",
        "cifarbench": str(passport["environment"].get("cifarbench", "")),
    }
    if normalise is not None:
        scale = "pixels in 0..1" if normalise else "pixels in 0..1, less `mean`, divided by `std`"
        known["input"] = f"images (N, 3, 32, 32) float32, RGB, {scale}"
        known["output"] = "logits (N, 10) float32, in the order of `classes`"
    return known


# --- graphs ----------------------------------------------------------------------------------------------------------


def _write_graph(trained: Trained, form: str, normalise: bool, path: Path, temporary: Path) -> Exported:
    graph = Graph(trained, normalise).to(memory_format=torch.contiguous_format).eval()
    write = _write_onnx if form == "onnx" else _write_torch_export
    with _quiet():
        answer = write(graph, metadata(trained, normalise), temporary)
    pixels, source = _images(trained)
    images = pixels if normalise else (pixels - graph.mean) / graph.std
    with torch.no_grad():
        expected = graph(images)
    with _quiet():
        found = torch.cat([answer(images[:1]), answer(images[1:])])  # two batch sizes: the first must be free
    difference = (found - expected).abs().max().item()
    if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
        raise IntegrityError(
            f"the {form} file answers otherwise than the model: a logit differs by {difference:.3g} on {len(images)} "
            "images; nothing was kept. Try another format."
        )
    return Exported(path, len(images), source, difference)


def _write_onnx(graph: Graph, known: dict[str, str], path: Path) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        graph,
        (torch.zeros(2, 3, 32, 32),),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, known)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_torch_export(graph: Graph, known: dict[str, str], path: Path) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(graph, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path, extra_files={"cifarbench.json": json.dumps(known, indent=2)})
    loaded = torch.export.load(path).module()

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            return loaded(images)

    return answer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress lines and advice for their own developers off the console."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _images(trained: Trained) -> tuple[Tensor, str]:
    """Images (64, 3, 32, 32) float32 in 0..1 and what they are: no test images, whose seal stays as it is."""
    try:
        data = load_images(trained.config.data)
        parts = split(data, trained.config.split)
        portion = parts.val or parts.train
        name = "validation" if parts.val else "training"
        return portion.images[:_CHECKED].float() / 255, f"{name} images"
    except (ResourceError, ConfigError):
        draw = torch.Generator().manual_seed(derive(0, "export"))
        coarse = torch.rand(_CHECKED, 3, 8, 8, generator=draw)
        return nn.functional.interpolate(coarse, size=32, mode="bilinear"), "drawn images, as the dataset is not here"


# --- weights ---------------------------------------------------------------------------------------------------------


def _write_weights(trained: Trained, path: Path, temporary: Path) -> Exported:
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = {name: value.detach().contiguous().clone() for name, value in trained.model.state_dict().items()}
    save_file(weights, temporary, metadata(trained, None))
    with safe_open(temporary, "pt") as file:
        same = set(file.keys()) == set(weights)
        same = same and all(torch.equal(file.get_tensor(name), value) for name, value in weights.items())
    if not same:
        raise IntegrityError("the safetensors file holds other weights than the model; nothing was kept.")
    return Exported(path, len(weights), "tensors", None)
