"""Options typed beside an experiment: what it says of a group holds for the option that it was written for.

Hydra merges an experiment after whichever options are chosen, so that `experiment=speed94 augment=none` would crop and
mirror all the same, and `experiment=speed94 optim=adamw` would hold keys of Muon. Here the option that is chosen last
counts, whole: where it is not the experiment's own, the section that the experiment has for this group is left out.
"""

from __future__ import annotations

from typing import Any

from hydra._internal import hydra as theirs
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import GroupDefault, ResultDefault
from omegaconf import open_dict

_GROUP = "experiment/"


def install() -> None:
    """Let Hydra compose so, in this process and in those that its launchers start."""
    theirs.ConfigLoaderImpl = Loader  # type: ignore[misc]


class Loader(ConfigLoaderImpl):
    """Hydra's loader, but for the sections of experiments."""

    _defaults: tuple[ResultDefault, ...] = ()

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> Any:
        self._defaults = tuple(defaults)
        return super()._compose_config_from_defaults_list(defaults, repo)

    def _load_single_config(self, default: ResultDefault, repo: Any) -> Any:
        loaded = super()._load_single_config(default, repo)
        path = default.config_path or ""
        if path.startswith(_GROUP):
            own = {**self._asked_at_the_root(repo), **self._asked_by(path, repo)}
            overruled = [group for group, option in self._chosen().items() if own.get(group, option) != option]
            with open_dict(loaded.config):
                for group in overruled:
                    loaded.config.pop(group, None)  # type: ignore[attr-defined]
        return loaded

    def _chosen(self) -> dict[str, str]:
        """The option of each group; parts of an option, such as `augment/none` of `augment/flip`, do not count."""
        pairs = ((d.config_path.split("/"), d.parent or "") for d in self._defaults if d.config_path)
        return {path[0]: path[1] for path, parent in pairs if len(path) == 2 and parent.split("/")[0] != path[0]}

    def _asked_at_the_root(self, repo: Any) -> dict[str, Any]:
        """The options that the configs of the verb, `train` and the like, ask for."""
        roots = dict.fromkeys(d.config_path for d in self._defaults if d.config_path and "/" not in d.config_path)
        return {group: d.value for path in roots for group, d in _groups(path, repo) if not d.override}

    def _asked_by(self, path: str, repo: Any) -> dict[str, Any]:
        """The options that an experiment asks for, itself or by the experiments that it builds on."""
        asked: dict[str, Any] = {}
        for below in self._defaults:
            if below.parent == path and (below.config_path or "").startswith(_GROUP) and below.config_path != path:
                asked |= self._asked_by(str(below.config_path), repo)
        return asked | {group: d.value for group, d in _groups(path, repo) if d.override}


def _groups(path: str, repo: Any) -> list[tuple[str, GroupDefault]]:
    """The groups in the defaults list of a config, by their names."""
    found = (d for d in repo.load_config(path).defaults_list if isinstance(d, GroupDefault))
    return [(str(d.group).lstrip("/"), d) for d in found]
