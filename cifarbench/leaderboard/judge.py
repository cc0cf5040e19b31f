"""The rules of the competition, checked one by one on a run's record, its checkpoint and the dataset itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.config.load import differences, load
from cifarbench.config.own import is_as_loaded, own_sections
from cifarbench.config.schema import TrainConfig
from cifarbench.data.dataset import ImageSet
from cifarbench.data.split import Parts
from cifarbench.errors import CifarbenchError, ResourceError
from cifarbench.evaluation.metrics import score
from cifarbench.evaluation.predict import predict
from cifarbench.evaluation.predictions import read_predictions
from cifarbench.models.flops import count_parameters
from cifarbench.training.restore import Trained, find_checkpoint, restore

VERDICT = "verify.json"


@dataclass(frozen=True)
class Check:
    """One rule: `verdict` is "kept", "broken" or "look" (a person has to), `reason` says on what grounds."""

    rule: str
    verdict: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What the rules are checked on."""

    manifest: dict[str, Any]
    trained: Trained
    data: ImageSet
    parts: Parts
    protocol: str
    limit: float | None


def examine(run: Path, evidence: Callable[[Trained], Evidence], root: str | None, threads: int | None) -> list[Check]:
    """Check every rule on the run directory `run`; a rule that cannot be checked is broken.

    Args:
        run: the run directory.
        evidence: adds manifest, dataset and limits to the restored model.
        root: the dataset's folder.
        threads: CPU threads of the scoring; None for those of the run.

    Raises:
        ResourceError: this machine lacks what the judge needs, such as the dataset, which is no fault of the run.
    """
    try:
        trained = restore(find_checkpoint(str(run), None), root)
        found = evidence(trained)
    except ResourceError:
        raise
    except CifarbenchError as error:
        return [Check("record", "broken", str(error))]
    status = found.manifest.get("status")
    if status != "completed":
        remedy = f"train it to its end with trainer.resume={run}, and it can be judged"
        return [Check("record", "broken", f"the run is {status}, not completed; {remedy}")]
    return [Check(rule, *_verdict(rule, found, run, threads)) for rule in _RULES]


def _verdict(rule: str, found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    try:
        return _RULES[rule](found, run, threads)
    except ResourceError:
        raise
    except (CifarbenchError, LookupError, TypeError, ValueError, OverflowError) as error:
        return "broken", f"run.json or the checkpoint is not in order: {error}"


def _is(kept: bool, good: str, bad: str) -> tuple[str, str]:
    return ("kept", good) if kept else ("broken", bad)


def _model(found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    """Rules 1 and 4: built here, from torch.nn, from drawn weights."""
    config, sessions = found.trained.config, found.manifest["sessions"]
    if sessions[0]["resumed_from"] is not None:
        return "broken", f"the first session began from {sessions[0]['resumed_from']}, not from drawn weights"
    count, recorded = count_parameters(found.trained.model), found.manifest["model"]["parameters"]
    if count != recorded:
        return "broken", f"run.json says {recorded:,} parameters, the rebuilt model has {count:,}"
    own = own_sections(config)
    edited = [section.name for section in own.values() if is_as_loaded(section) is False]
    if edited:
        return "broken", f"{edited[0]} was trained from another file than the one that `plugins` names"
    named = ", ".join(f"{group}={section.name}" for group, section in own.items())
    if "model" in own:
        foreign = {f"{type(module).__module__}.{type(module).__qualname__}" for module in found.trained.model.modules()}
        shown = ", ".join(sorted(name for name in foreign if not name.startswith("torch.nn."))) or "torch.nn alone"
        return "look", f"{count:,} parameters, code of the run's author; read the file of {named} ({shown})"
    if own:
        return "look", f"{count:,} parameters, trained by code of the run's author; read the file of {named}"
    return "kept", f"{config.model.name} is shipped, {count:,} parameters, weights drawn from seed {config.seed}"


def _split(found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    """Rule 2: the demanded split, on the images as published."""
    recorded = found.manifest["split"]
    same = recorded["fingerprint"] == found.parts.fingerprint == found.trained.passport["split"]["fingerprint"]
    if recorded["name"] != found.protocol:
        return "broken", f"the split is {recorded['name']}, the rules demand {found.protocol}"
    return _is(
        same,
        f"{found.protocol}, fingerprint {found.parts.fingerprint[:12]} worked out again from the images",
        f"the fingerprint {recorded['fingerprint'][:12]} is not that of {found.protocol} here",
    )


def _data(found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    """Rule 3: trained on the trainable images of CIFAR-10, the test part opened once."""
    if found.data.name != "cifar10":
        return "broken", f"the dataset is {found.data.name}, not CIFAR-10"
    if found.manifest["dataset"]["fingerprint"] != found.data.fingerprint:
        return "broken", "run.json names another dataset than the one that lies here"
    openings = found.manifest["test"]["openings"]
    if openings != 1:
        return "look", f"the test part was opened {openings} times, once is the rule"
    counts = found.manifest["split"]
    return "kept", f"{counts['train']:,} images trained on, {counts['test']:,} sealed and opened once"


def _time(found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    """Rule 5: within the time limit, by the run's own clock over all its sessions."""
    cold = float(found.manifest["timing"]["cold"])
    if found.limit is None:
        return "kept", f"no limit asked for; {cold:,.0f} s"
    device = found.manifest["environment"]["device_name"]
    return _is(
        cold <= found.limit,
        f"{cold:,.0f} s of {found.limit:,.0f} s on {device}, by the run's own clock",
        f"{cold:,.0f} s, the limit is {found.limit:,.0f} s",
    )


def _config(found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    """The record itself: config.yaml is what the checkpoint was trained with, in every key that can change weights."""
    lines = differences(_written(run), found.trained.config)
    keys = ", ".join(line.split(":")[0] for line in lines)
    return _is(not lines, "config.yaml agrees with the checkpoint", f"config.yaml and the checkpoint differ in {keys}")


def _written(run: Path) -> TrainConfig:
    """The config of the run's last session, whose keys of no weight, such as `trainer.tta`, the test went by."""
    return load(TrainConfig, runs.read_config(run))


def _score(found: Evidence, run: Path, threads: int | None) -> tuple[str, str]:
    """The number: the checkpoint, scored again, gives what was recorded, and so do the stored predictions."""
    trained, recorded = found.trained, found.manifest["test"]["accuracy"]
    compute = trained.compute("cpu", "auto", threads)
    portion, trainer = found.parts.test.open(), _written(run).trainer
    logits = predict(
        trained.on(compute), portion.images, trained.statistics, compute, trainer.tta, trainer.channels_last
    )
    scored = score(logits, portion.targets, found.data.classes, found.parts.test.official)
    again, loss = scored["accuracy"], float(found.manifest["test"]["loss"])
    stored = read_predictions(run).right.double().mean().item()
    if abs(stored - recorded) > 1e-9:
        return "broken", f"predictions.npz gives {stored:.4%}, run.json says {recorded:.4%}"
    if again == recorded and not math.isclose(scored["loss"], loss, rel_tol=1e-2):
        return "look", f"scored again: {again:.4%}, as recorded, but by a loss of {scored['loss']:.4f}, not {loss:.4f}"
    if again == recorded:
        return "kept", f"scored again: {again:.4%}, exactly as recorded"
    # On another kind of machine a few images at the border of two classes may fall to the other side.
    close = abs(again - recorded) <= 0.001
    text = f"scored again on this machine: {again:.4%}, recorded: {recorded:.4%}"
    return ("look", f"{text}; other hardware can cost a few images") if close else ("broken", text)


_RULES: dict[str, Callable[[Evidence, Path, int | None], tuple[str, str]]] = {
    "1, 4  own model, drawn weights": _model,
    "2     the last 20 % is for testing": _split,
    "3     trainable images only": _data,
    "5     time limit": _time,
    "config": _config,
    "accuracy": _score,
}


def passed(checks: list[Check]) -> bool:
    """Whether no rule is broken."""
    return all(check.verdict != "broken" for check in checks)


def keep(run: Path, checks: list[Check], protocol: str, limit: float | None) -> None:
    """Write verify.json: the verdicts, the split and the seconds that were demanded, and a digest of what was judged.

    The digest is null where there is nothing to take it of.
    """
    verdict = {"passed": passed(checks), "protocol": protocol, "limit": limit, "digest": digest(run)}
    runs.write_json(run / VERDICT, {**verdict, "checks": [asdict(check) for check in checks]})


def is_verified(run: Path, protocol: str, limit: float | None) -> bool:
    """Whether the run was found in order by rules no laxer than these, and what was judged has not changed since."""
    try:
        kept = runs.read_json(run / VERDICT)
        if kept.get("passed") is not True or kept.get("protocol") != protocol or kept.get("digest") is None:
            return False
        allowed = kept.get("limit")
        within = limit is None or (isinstance(allowed, int | float) and allowed <= limit)
        return within and kept["digest"] == digest(run)
    except (CifarbenchError, OSError):
        return False


def digest(run: Path) -> str | None:
    """SHA-256 over run.json and the checkpoint that was tested; None where run.json is damaged or no such file lies."""
    try:
        checkpoint = find_checkpoint(str(run), None)
    except CifarbenchError:
        return None
    found = hashlib.sha256()
    for path in (run / "run.json", checkpoint):
        found.update(path.read_bytes())
    return found.hexdigest()
