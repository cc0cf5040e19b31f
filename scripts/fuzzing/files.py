"""Records, checkpoints, predictions, images and batch files with something wrong, given to the verbs that read them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cifarbench.training.checkpoint import sealed_bytes
from fuzzing import values
from fuzzing.case import Case
from fuzzing.corpus import BATCHES, RUNS, command_of

_BOTH = tuple(RUNS)
_READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "record": (
        ("report", "run_a"),
        ("report", *_BOTH, "out=both.html"),
        ("leaderboard", "."),
        ("leaderboard", ".", "--compare", *_BOTH),
        ("verify", "run_a"),
        ("ensemble", *_BOTH),
        ("eval", "run=run_a", "portion=val"),
        ("train", "trainer.resume=run_a"),
    ),
    "checkpoint": (
        ("eval", "run=run_a", "portion=val"),
        ("eval", "checkpoint=run_a/checkpoints/last.pt"),
        ("predict", "run=run_a", "photos/photo.png"),
        ("export", "run_a", "format=safetensors"),
        ("ensemble", *_BOTH, "average=weights"),
        ("verify", "run_a"),
        ("report", "run_a"),
        ("train", "trainer.resume=run_a"),
    ),
    "predictions": (("report", "run_a"), ("ensemble", *_BOTH), ("leaderboard", ".", "--compare", *_BOTH)),
    "image": (("predict", "run=run_a", "photos"), ("predict", "run=run_a", "photos/*", "format=json")),
    "batch": (
        ("data", "check", "data.root=batches"),
        ("data", "show", "data.root=batches"),
        ("baseline", "knn", "data.root=batches", "data.download=false"),
        ("train", "data.root=batches", "trainer.progress=plain"),
    ),
    "sweep": (command_of("sweep"), ("leaderboard", "sweep"), ("report", "sweep")),
    "study": (command_of("study"),),
}


class Spoiler:
    """Draws cases with spoilt files, from the corpus in a folder."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        self.makers: dict[str, Callable[[random.Random], Case]] = {
            "record": self._record,
            "checkpoint": self._checkpoint,
            "predictions": self._predictions,
            "image": self._image,
            "batch": self._batch,
            "sweep": self._sweep,
            "study": self._study,
        }

    def draw_case(self, draw: random.Random) -> Case:
        """One case; what is read more often, and by more verbs, is drawn more often."""
        kinds, weights = list(self.makers), (5, 5, 2, 2, 1, 1, 0.3)
        return self.makers[draw.choices(kinds, weights)[0]](draw)

    def _record(self, draw: random.Random) -> Case:
        argv = draw.choice(_READERS["record"])
        names = ("run.json", "run.json", "config.yaml", "test.json", "metrics.jsonl", "confusion_matrix.csv")
        name = f"run_a/{draw.choice(names)}"
        unfinished = self._unfinished(draw) if argv[0] == "train" else {}
        return self._case(draw, argv, _BOTH, name, self._text, unfinished)

    def _unfinished(self, draw: random.Random) -> dict[str, bytes | None]:
        """A run.json that lets a resume go on, since it does nothing in a finished run."""
        manifest = json.loads((self.corpus / "run_a" / "run.json").read_text(encoding="utf-8"))
        return {"run_a/run.json": json.dumps({**manifest, "status": draw.choice(("interrupted", "failed"))}).encode()}

    def _text(self, draw: random.Random, name: str, content: bytes) -> bytes:
        """A text record, changed in its meaning or in its bytes."""
        if draw.random() < 0.35 or name.endswith(".csv"):
            return values.spoil(draw, content)
        text = content.decode()
        if name.endswith(".yaml"):
            return yaml.safe_dump(values.change(draw, yaml.safe_load(text)), allow_unicode=True).encode()
        if name.endswith(".jsonl"):
            rows = values.change(draw, [json.loads(line) for line in text.splitlines()])
            return "\n".join(json.dumps(row) for row in (rows if isinstance(rows, list) else [rows])).encode()
        return json.dumps(values.change(draw, json.loads(text))).encode()

    def _checkpoint(self, draw: random.Random) -> Case:
        argv = draw.choice(_READERS["checkpoint"])
        name = f"run_a/checkpoints/{draw.choice(('last.pt', 'last.pt', 'best.pt'))}"
        more = self._unfinished(draw) if argv[0] == "train" else {}
        damage = self._state if draw.random() < 0.75 else self._bytes
        return self._case(draw, argv, (*_BOTH, "photos"), name, damage, more)

    def _state(self, draw: random.Random, name: str, content: bytes) -> bytes:
        """A checkpoint that is whole and carries a right checksum, with something odd in it."""
        state = torch.load(io.BytesIO(content), weights_only=True)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            state = _odd_tensor(draw, state) if draw.random() < 0.3 else values.change(draw, state)
        return sealed_bytes(state if isinstance(state, dict) else {"schema": 1, "model": state})

    def _bytes(self, draw: random.Random, name: str, content: bytes) -> bytes:
        return values.spoil(draw, content)

    def _predictions(self, draw: random.Random) -> Case:
        argv = draw.choice(_READERS["predictions"])
        damage = self._arrays if draw.random() < 0.7 else self._bytes
        return self._case(draw, argv, _BOTH, "run_a/predictions.npz", damage)

    def _arrays(self, draw: random.Random, name: str, content: bytes) -> bytes:
        """An archive of arrays, one of which is of another shape, kind or content, or has another name."""
        with np.load(io.BytesIO(content)) as archive:
            arrays = dict(archive)
        which = draw.choice(list(arrays))
        array = arrays[which]
        other: list[Any] = [
            *(array[:0], array[:1], array[::2], array.reshape(-1, 1), array[..., None], array.T, array * 0, -array),
            *(array.astype("f8") * np.nan, array.astype("f8") * 1e300, array.astype(">i4"), array.astype("S3")),
            *(array.astype(bool), array.astype("c16"), np.zeros((0, 10)), np.array(3), np.full_like(array, 2**31)),
        ]
        arrays[which] = draw.choice(other)
        if draw.random() < 0.1:
            arrays[draw.choice(values.TEXTS[2:4])] = arrays.pop(which)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    def _image(self, draw: random.Random) -> Case:
        argv = draw.choice(_READERS["image"])
        name = draw.choice(("photo.png", "photo.jpg", "photo.webp", "photo.bmp", "palette.png"))
        return self._case(draw, argv, ("run_a", "photos"), f"photos/{name}", self._bytes)

    def _batch(self, draw: random.Random) -> Case:
        argv = draw.choice(_READERS["batch"])
        name = f"batches/cifar-10-batches-py/{draw.choice(BATCHES)}"
        return self._case(draw, argv, ("batches",), name, self._bytes)

    def _sweep(self, draw: random.Random) -> Case:
        argv = draw.choice(_READERS["sweep"])
        job = draw.choice(sorted(path.name for path in (self.corpus / "sweep").iterdir() if path.is_dir()))
        files = [f"sweep/{job}/{name}" for name in ("run.json", "config.yaml", "metrics.jsonl", "checkpoints/last.pt")]
        files += [f"sweep/{path.name}" for path in (self.corpus / "sweep").iterdir() if path.is_file()]
        name = draw.choice(files)
        if draw.random() < 0.2:
            return Case(argv[0], "sweep", argv, ("sweep",), {f"sweep/{job}/failure.json": values.spoil(draw, b"{}")})
        return self._case(draw, argv, ("sweep",), name, self._bytes if name.endswith(".pt") else self._text_or_bytes)

    def _text_or_bytes(self, draw: random.Random, name: str, content: bytes) -> bytes:
        known = name.endswith((".json", ".yaml", ".jsonl"))
        return self._text(draw, name, content) if known else values.spoil(draw, content)

    def _study(self, draw: random.Random) -> Case:
        found = [path for path in (self.corpus / "study").rglob("*") if path.is_file() and path.name != ".lock"]
        name = str(draw.choice(sorted(found)).relative_to(self.corpus))
        return self._case(draw, draw.choice(_READERS["study"]), ("study",), name, self._text_or_bytes)

    def _case(
        self,
        draw: random.Random,
        argv: tuple[str, ...],
        needs: tuple[str, ...],
        name: str,
        damage: Callable[[random.Random, str, bytes], bytes],
        more: dict[str, bytes | None] | None = None,
    ) -> Case:
        """The case with `name` spoilt: a folder in its place now and then."""
        kind = name.rpartition("/")[2]
        content = (more or {}).get(name) or (self.corpus / name).read_bytes()
        spoilt = None if draw.random() < 0.02 else damage(draw, name, content)
        return Case(argv[0], kind, argv, needs, {**(more or {}), name: spoilt})


def _odd_tensor(draw: random.Random, state: dict[str, Any]) -> dict[str, Any]:
    """The state with one of its tensors of another shape, type or content."""
    weights = state.get("model") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not weights:
        return state
    name = draw.choice(list(weights))
    tensor = weights[name] if isinstance(weights[name], torch.Tensor) else torch.zeros(1)
    other = [
        *(tensor.double(), tensor.half(), tensor.long(), tensor.bool(), tensor[..., None], tensor.flatten()),
        *(
            tensor * float("nan"),
            tensor * float("inf"),
            torch.zeros(0),
            torch.tensor(3.0),
            tensor.expand(2, *tensor.shape),
        ),
        *(torch.zeros(1).expand(4096, 4096), tensor.float() * 1e38),
    ]
    return {**state, "model": {**weights, name: draw.choice(other)}}
