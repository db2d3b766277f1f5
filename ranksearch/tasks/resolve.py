"""`module:function` and `file.py:function`: what a user's text names, imported.

What is the user's own must reach workers that cannot import it, so such modules are pickled by value (cloudpickle).
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
from torch import nn

from ranksearch.errors import ConfigError, RanksearchError, UsageError
from ranksearch.records import nearest

__all__ = ["call", "is_reference", "one_line", "resolve"]

LONGEST_REASON = 300


def one_line(error: BaseException) -> str:
    """An exception's type and message in one line of bounded length."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def is_reference(text: str) -> bool:
    """Whether `text` is written `module:name` or `file.py:name`."""
    place, separator, name = text.rpartition(":")
    return bool(separator) and name.isidentifier() and (place.endswith(".py") or _is_module_name(place))


def _is_module_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def resolve(text: str, *, error: type[UsageError] = ConfigError, words: Iterable[str] = ()) -> Callable[..., Any]:
    """What `module:function` or `file.py:function` names. The working directory is importable, and stays so.

    `words`: what else may have been meant where there is no such module.

    Raises `error` when there is no such module, file or name, when importing it fails, and when it cannot be called.
    """
    if not is_reference(text):
        raise error(f"got {text!r}{nearest(text, words)}; write module:function or file.py:function")
    _make_importable(Path.cwd())
    place, _, name = text.rpartition(":")
    module = _from_file(Path(place), error) if place.endswith(".py") else _from_name(place, error, words)
    _ship(module)
    found = getattr(module, name, None)
    if found is None:
        raise error(f"{place} has no {name!r}{nearest(name, _public(module))}; write module:function")
    if not callable(found):
        raise error(f"{text} is a {type(found).__name__}; name a function")
    return found


def call(text: str, function: Callable[..., Any], arguments: Mapping[str, Any], *, error: type[UsageError]) -> Any:
    """What the user's `function` (or the module that it already is) gives; what it raises becomes `error`, one line.

    Modules that it imported on the way are the user's too, and are pickled by value from then on.
    """
    if isinstance(function, nn.Module):
        return function
    try:
        result = function(**arguments)
    except RanksearchError:
        raise
    except Exception as raised:
        raise error(f"{text} raised {one_line(raised)}") from raised
    if module := inspect.getmodule(function):
        _ship(module)
    return result


def _public(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _from_name(name: str, error: type[UsageError], words: Iterable[str]) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as raised:
        if raised.name is None or not f"{name}.".startswith(f"{raised.name}."):
            raise error(f"importing {name} failed: {one_line(raised)}") from raised
        here = [found.name for found in pkgutil.iter_modules([str(Path.cwd())])]
        hint = nearest(name, [*words, *here])
        raise error(f"no module named {raised.name!r}, neither installed nor in {Path.cwd()}{hint}") from raised
    except (Exception, SystemExit) as raised:
        raise error(f"importing {name} failed: {one_line(raised)}") from raised


def _from_file(path: Path, error: type[UsageError]) -> ModuleType:
    """The module of a file, under a name of its own: a user's `data.py` must not hide another `data`."""
    if not path.is_file():
        siblings = nearest(path.name, [p.name for p in path.absolute().parent.glob("*.py")])
        raise error(f"no file {str(path)!r}{siblings}; write file.py:function")
    path = path.resolve()
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _make_importable(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as raised:  # a script that parses arguments when imported exits
        del sys.modules[name]
        raise error(f"importing {path.name} failed: {one_line(raised)}") from raised
    return module


def _make_importable(folder: Path) -> None:
    if not any(Path(entry or ".").resolve() == folder.resolve() for entry in sys.path):
        sys.path.insert(0, str(folder))


def _ship(module: ModuleType) -> None:
    """Pickle by value the user's modules: `module`'s package, and what was imported from beside it or from here."""
    root = _root_of(module)
    if root is None or _is_installed(root):
        return
    for name, other in list(sys.modules.items()):
        if name == getattr(other, "__name__", None) and "." not in name and _root_of(other) in (root, Path.cwd()):
            cloudpickle.register_pickle_by_value(other)


def _root_of(module: ModuleType) -> Path | None:
    """The folder from which a module's top-level package was imported."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    places = [getattr(top, "__file__", None), *getattr(top, "__path__", [])]
    place = next((p for p in places if p), None)
    if place is None or top.__name__ in ("ranksearch", "__main__"):
        return None
    folder = Path(place).resolve().parent
    return folder.parent if place == places[0] and hasattr(top, "__path__") else folder


def _is_installed(folder: Path) -> bool:
    paths = sysconfig.get_paths()
    installed = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()]
    return any(folder.is_relative_to(Path(place).resolve()) for place in [*installed, site.getusersitepackages()])
