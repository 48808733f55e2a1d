"""
Names of functions, by which a fresh interpreter finds them.

The form is `package.module:function`, as in the entry points of packages. The interpreter
of function jobs loads this module, so it uses the standard library only.
"""

from __future__ import annotations

import os
import sys
from types import MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LOCAL = "<locals>"  # part of the qualified name of anything defined inside a function
_LAMBDA = "<lambda>"


def locate(name: str) -> Any:
    """
    Import the module of a name, and return the object that the name refers to.

    Raises:
        Exception: Anything that the module raises when it is imported.
        AttributeError: The module has no such attribute.
    """
    module, _, path = name.partition(":")
    # Not `importlib.import_module`, whose frames would appear in tracebacks.
    __import__(module)
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part)
    return found


def name_of(thing: Any) -> str | None:
    """Return the name of a function or class, from its own attributes; None: it has none."""
    module = getattr(thing, "__module__", None)
    path = getattr(thing, "__qualname__", None)
    if isinstance(module, str) and isinstance(path, str):
        return f"{module}:{path}"
    return None


def why_unfindable(thing: Any) -> str | None:
    """Return why a fresh interpreter would not find a function or class by name; None: it would."""
    name = name_of(thing)
    if name is None:
        return f"an object of type {kind_of(thing)} has no name"
    module, _, path = name.partition(":")
    reason = _why_unreachable(module, path)
    if reason is not None:
        return reason
    try:
        found = locate(name)
    except Exception as error:  # noqa: BLE001 - importing runs arbitrary code
        return f"{name} is not found: {type(error).__name__}"
    reason = why_unimportable(module)
    if reason is not None:
        return reason
    # Each access to a bound method of a class creates a new, equal object.
    if found is not thing and not (isinstance(thing, MethodType) and found == thing):
        return f"{name} now names another object, which has replaced the given one"
    return None


def why_unimportable(name: str) -> str | None:
    """
    Return why a fresh interpreter would not import the same module by name; None: it would.

    For example, a module that was loaded by its path has a name that only this process knows.
    """
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:end]))
        spec = getattr(module, "__spec__", None)
        if spec is None and end < len(parts):
            continue  # an empty package, such as the one in the interpreter of a function job
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
    """Return the spec that an import would find, ignoring modules that are loaded already."""
    for finder in sys.meta_path:
        try:
            found = finder.find_spec(name, path)
        except Exception:  # noqa: BLE001, S112 - the host may have its own finders
            continue
        if found is not None:
            return found
    return None


def _is_same(one: str | None, other: str | None) -> bool:
    if one is None or other is None or one == other:
        return True  # a namespace package has no file to compare
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _why_unreachable(module: str, path: str) -> str | None:
    """Return why a name cannot be found in any other process, or None."""
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
    """Return the name of an object's type for an error text, without `builtins`."""
    kind = type(thing)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
