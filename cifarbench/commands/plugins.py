"""Models of the user's own: Python files named by `plugins=`, and by nothing else.

A file registers its model by one decorator; the keyword arguments of its class become the keys of `model`:

    from cifarbench.models.registry import register

    @register("mynet")
    class MyNet(nn.Module):
        def __init__(self, *, width: int = 64) -> None: ...

    cifarbench train plugins=[mynet.py] model=mynet model.width=96

The file's digest becomes a key too, `model.sha256`, so that an edited file is another recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifarbench.config.keys import key
from cifarbench.config.load import CHOICES
from cifarbench.config.models import SHIPPED, is_as_loaded
from cifarbench.errors import ConfigError, IntegrityError

_loaded: set[Path] = set()


def plugins_in(arguments: Sequence[str]) -> list[str]:
    """The files that `plugins=[a.py,b.py]` on a command line names, before Hydra has read it."""
    named = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("plugins=")]
    return [part.strip(" '\"") for part in named[-1].strip("[]").split(",") if part.strip()] if named else []


def load_plugins(files: Sequence[str]) -> None:
    """Run each file once, and make every model it registers an option of the group `model`.

    Raises:
        ConfigError: `files` is no list of names, a file is missing or fails, or a model's argument has no type or
            default.
    """
    if not files:
        return
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) for file in files):
        raise ConfigError(f"`plugins` is {files!r}; it must be a list of Python files, like [mynet.py].")
    from cifarbench.models import registry

    for file in files:
        path = Path(file).resolve()
        if path in _loaded:
            continue
        before = set(registry.names())
        _run_file(path)
        _loaded.add(path)
        for name in set(registry.names()) - before:
            _add_model(name, registry.options(name), hashlib.sha256(path.read_bytes()).hexdigest()[:16])


def loaded_digest(name: str) -> str:
    """The digest of the file that registered the model `name`; empty for a shipped model, or one that is not loaded."""
    return getattr(CHOICES["model"].get(name), "loaded", "")


def check_plugin(model: Any) -> None:
    """Raise IntegrityError where a plugin's model was configured from another file than the one that is loaded."""
    if model.name not in SHIPPED and not is_as_loaded(model):
        raise IntegrityError(
            f"`model.sha256` is {model.sha256!r}, and the file of {model.name} that is loaded has {model.loaded!r}: it "
            "was edited since. Take the file as it was, or start a new run, which sets this key by itself."
        )


def _run_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"`plugins` names {str(path)!r}, which is no file.")
    if path.suffix != ".py":
        raise ConfigError(f"`plugins` names {str(path)!r}; a Python file's name must end in .py.")
    spec = importlib.util.spec_from_file_location(f"cifarbench_plugin_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"the plugin {path} failed: {type(error).__name__}: {error}") from error


def _add_model(name: str, options: dict[str, inspect.Parameter], digest: str) -> None:
    """Make the model's keyword arguments its config keys, with their defaults as an option of the group."""
    from hydra.core.config_store import ConfigStore

    digest_key = key("Digest of the plugin's file, set by itself: a file that was edited is another recipe.")
    fields: list[Any] = [("name", str, key("The model.", choices=[name])), ("sha256", str, digest_key)]
    defaults: dict[str, Any] = {"name": name, "sha256": digest}
    for argument, parameter in options.items():
        kind, default = parameter.annotation, parameter.default
        kind = {"int": int, "float": float, "bool": bool, "str": str}.get(kind, kind)
        if argument in (*defaults, "loaded"):
            raise ConfigError(f"the plugin model {name!r} takes {argument!r}, which is taken; give it another name.")
        if kind not in (int, float, bool, str) or default is inspect.Parameter.empty:
            raise ConfigError(
                f"the plugin model {name!r} takes {argument!r}, which needs a type (int, float, bool or str) "
                "and a default to become a key."
            )
        fields.append((argument, kind, key(f"Argument {argument} of {name}.")))
        defaults[argument] = default
    CHOICES["model"][name] = dataclasses.make_dataclass(
        f"{name}Config", fields, frozen=True, kw_only=True, namespace={"loaded": digest}
    )
    ConfigStore.instance().store(group="model", name=name, node=defaults)
