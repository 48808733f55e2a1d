"""
Naming: how a function is called, so that a fresh interpreter finds it again.

The form is `package.module:function`, as in the entry points of packages. The
interpreter that calls functions loads this, too, so it needs the standard library alone.
"""

from __future__ import annotations

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
    if getattr(sys.modules[module], "__spec__", None) is None:
        return f"the module {module} was not imported from anywhere"
    # A bound method of a class is made anew at each look, and equal.
    if found is not thing and not (isinstance(thing, MethodType) and found == thing):
        return f"{name} leads to something else: what was given has been replaced there"
    return None


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
