"""
The name of a function, by which a fresh interpreter finds it again.

The form is `package.module:function`, as in the entry points of packages. The
interpreter that calls functions loads this, too, so it needs the standard library alone.
"""

from __future__ import annotations

import os
import sys
from types import MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LOCAL = "<locals>"  # in the qualified name of what is defined inside a function
_LAMBDA = "<lambda>"


def locate(name: str) -> Any:
    """
    Return what `name` leads to, importing its module.

    Raises:
        Exception: Whatever its module raises when it is imported.
        AttributeError: There is no such name in it.
    """
    module, _, path = name.partition(":")
    # Not importlib's function: the statement's own leaves importlib's frames out of tracebacks.
    __import__(module)
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part)
    return found


def name_of(thing: Any) -> str | None:
    """Return the name that a function or class gives itself, or None where it has none."""
    module = getattr(thing, "__module__", None)
    path = getattr(thing, "__qualname__", None)
    if isinstance(module, str) and isinstance(path, str):
        return f"{module}:{path}"
    return None


def why_unfindable(thing: Any) -> str | None:
    """Return why a fresh interpreter would not find a function or class by its name, or None."""
    name = name_of(thing)
    if name is None:
        return f"an object of type {kind_of(thing)} has no name"
    module, _, path = name.partition(":")
    reason = _why_out_of_reach(module, path)
    if reason is not None:
        return reason
    try:
        found = locate(name)
    except Exception as error:  # noqa: BLE001 - importing runs anybody's code
        return f"{name} is not found: {type(error).__name__}"
    reason = why_unimportable(module)
    if reason is not None:
        return reason
    # A bound method of a class is made anew at each look, and equal.
    if found is not thing and not (isinstance(thing, MethodType) and found == thing):
        return f"{name} leads to something else: what was given has been replaced there"
    return None


def why_unimportable(name: str) -> str | None:
    """
    Return why a fresh interpreter would not import the same module by its name, or None.

    One that was loaded by its path is known here by a name that leads nowhere elsewhere.
    """
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:end]))
        spec = getattr(module, "__spec__", None)
        if spec is None and end < len(parts):
            continue  # a bare package, as that of the interpreter which calls functions
        if spec is None:
            return f"the module {name} was not imported from anywhere"
        parent = sys.modules[".".join(parts[: end - 1])] if end > 1 else None
        found = _look_for(".".join(parts[:end]), getattr(parent, "__path__", None))
        if found is None:
            return (
                f"a fresh interpreter does not find the module {name}, which was loaded here "
                f"from {spec.origin}: put its directory on sys.path, and import it by its name"
            )
        if not _is_same(spec.origin, found.origin):
            return (
                f"the module {name} was loaded here from {spec.origin}, and a fresh "
                f"interpreter finds another one, {found.origin}"
            )
    return None


def _look_for(name: str, path: Any) -> Any:
    """Return what importing would find that does not know the modules of this process."""
    for finder in sys.meta_path:
        try:
            found = finder.find_spec(name, path)
        except Exception:  # noqa: BLE001, S112 - a finder of the host's
            continue
        if found is not None:
            return found
    return None


def _is_same(one: str | None, other: str | None) -> bool:
    if one is None or other is None or one == other:
        return True  # a package without a file of its own has none
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _why_out_of_reach(module: str, path: str) -> str | None:
    """Return why a name can lead nowhere, or None."""
    if path.endswith(_LAMBDA):
        return "a lambda has no name: write a function in a module"
    if _LOCAL in path:
        return f"{module}:{path} is defined inside a function: move it to the top of its module"
    if module == "__main__":
        return (
            f"{path} is defined in __main__, the program itself, "
            "which a fresh interpreter does not run: move it into a module"
        )
    return None


def kind_of(thing: object) -> str:
    """Return the name of its type, as a person reads it."""
    kind = type(thing)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
