"""Whether a run directory holds what a job's command would produce now: done, to be gone on with, or of another run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarbench import runs
from cifarbench.commands import baseline
from cifarbench.commands.hydra_app import compose
from cifarbench.config.load import differences, load, to_plain
from cifarbench.config.schema import TrainConfig
from cifarbench.errors import CifarbenchError, ConfigError
from table.records import SCORING
from table.rows import PROFILES, Job


@dataclass(frozen=True)
class Standing:
    """What lies in a job's directory: `status` is new, done, begun or other; `reason` says what differs in other."""

    status: str
    reason: str = ""


class Asked:
    """What each job's command asks for now: its checked config and, once needed, its passport.

    Raises:
        ConfigError: an override is wrong, or the profile may not hold the dataset.
    """

    def __init__(self) -> None:
        self._configs: dict[tuple[str, ...], Any] = {}
        self._passports: dict[str, dict[str, str]] = {}

    def config(self, job: Job) -> Any:
        """The config of the job's command, of whichever seed was asked for first."""
        known = (job.row.verb, *job.row.words, *job.plan.add)
        if known not in self._configs:
            self._configs[known] = _composed(job)
        return self._configs[known]

    def passport(self, job: Job) -> dict[str, str]:
        """The fingerprints of the dataset and the split that the command would use."""
        from cifarbench.data.load import load_images
        from cifarbench.data.split import split

        config = self.config(job)
        known = json.dumps([to_plain(config.data), to_plain(config.split)])
        if known not in self._passports:
            data = load_images(config.data)
            found = {"dataset": data.fingerprint, "split": split(data, config.split).fingerprint}
            self._passports[known] = found
        return self._passports[known]


def _composed(job: Job) -> Any:
    """The config of a job's command; ConfigError names the row."""
    from cifarbench.config.before import BaselineConfig

    runs.register_resolvers()
    try:
        if job.row.verb == "baseline":
            config: Any = load(BaselineConfig, compose("baseline", baseline.rewrite(list(job.words))))
        else:
            sealed = ["trainer.test=false"] if job.row.verb == "peek" else []  # its script opens the seal itself
            config = load(TrainConfig, compose("train", [*job.words, *sealed]))
    except ConfigError as error:
        raise ConfigError(f"the row `{job.row.name}`: {error}") from error
    wanted = PROFILES[job.profile]
    if config.data.name != wanted:
        raise ConfigError(
            f"the row `{job.row.name}` trains on {config.data.name}, and the profile {job.profile} holds {wanted} "
            f"alone; set data={wanted}, or move the row."
        )
    return config


def standing(job: Job, asked: Asked) -> Standing:
    """What lies in the job's directory, compared with what its command would produce now.

    Raises:
        CifarbenchError: the dataset cannot be read, so that nothing can be said.
    """
    if not (job.directory / "run.json").is_file():
        return Standing("new")
    config, passport = asked.config(job), asked.passport(job)
    try:
        manifest = runs.read_manifest(job.directory)
        reason = _other_config(job, manifest, config) or _other_data(manifest, passport)
    except CifarbenchError as error:
        return Standing("other", str(error))
    if reason:
        return Standing("other", reason)
    if is_finished(job.directory, manifest):
        return Standing("done")
    return Standing("begun") if job.row.verb != "baseline" else Standing("other", "it ended early and cannot go on")


def is_finished(directory: Path, manifest: dict[str, Any]) -> bool:
    """Whether the run is complete and its test part was scored."""
    return manifest.get("status") == "completed" and manifest.get("test", {}).get("accuracy") is not None


def _other_config(job: Job, manifest: dict[str, Any], config: Any) -> str:
    """How the run's config differs from the one asked for in what can change its result, "" where it does not.

    Configs are compared, not the identities that hash them: a key that came later, at the value that does what was
    done before, changes every hash and no run.
    """
    stored = load(type(config), runs.read_config(job.directory))
    lines = [line for line in differences(stored, config) if not line.startswith("`seed`")]
    if isinstance(config, TrainConfig):
        for name in SCORING:
            before, now = getattr(stored.trainer, name), getattr(config.trainer, name)
            lines += [f"`trainer.{name}`: {before!r} in the run, {now!r} asked for"] if before != now else []
        if manifest.get("seed") != job.seed:
            lines.append(f"`seed`: {manifest.get('seed')} in the run, {job.seed} asked for")
    return "; ".join(lines)


def _other_data(manifest: dict[str, Any], passport: dict[str, str]) -> str:
    for part, now in passport.items():
        before = str((manifest.get(part) or {}).get("fingerprint"))
        if before != now:
            return f"{part}: {before[:12]} in the run, {now[:12]} here"
    return ""


def set_aside(directory: Path) -> Path:
    """Rename a directory that holds another run, so that nothing is lost; returns its new name."""
    number = 1
    while (target := directory.with_name(f"{directory.name}-before{number}")).exists():
        number += 1
    directory.rename(target)
    return target
