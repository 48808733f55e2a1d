"""
Files of pipelines in YAML or JSON: reading them, and the line of each place in them.

`pipeline_file` checks what they hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jobcore.errors import CommandError, PipelineFileError, shown

#: Bytes of a file: thousands of pipelines, and little memory for the parser.
MOST_BYTES = 8 * 2**20
#: Entries and levels of a file: aliases can make a small file very large.
MOST_PLACES, DEEPEST = 200_000, 100

#: A place in a mapping: keys and indexes from the outside to the inside.
Place = tuple[str | int, ...]


class Source(NamedTuple):
    """
    A file that was read.

    Attributes:
        path: Its path.
        mapping: Its content, in the form with `pipelines`.
        lines: The number of the line of each place in `mapping`.
    """

    path: str
    mapping: dict[str, Any]
    lines: Mapping[Place, int]

    def line_of(self, place: Place) -> int:
        """Return the number of the line of a place, or of the nearest one around it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


def merged(sources: Sequence[Source]) -> dict[str, Any]:
    """
    Return the content of several files as that of one.

    Raises:
        CommandError: Two of them have a pipeline of the same name, or different versions.
    """
    first = sources[0]
    if len(sources) == 1:
        return first.mapping
    pipelines: dict[str, Any] = {}
    homes: dict[str, Source] = {}
    for one in sources:
        if one.mapping.get("version") != first.mapping.get("version"):
            raise CommandError(
                f"{first.path} and {one.path} have different versions: apply them one by one"
            )
        own = one.mapping.get("pipelines")
        if set(one.mapping) - {"version", "pipelines"} or not isinstance(own, dict):
            return one.mapping  # the check of its content says what is wrong
        for name, entry in own.items():
            if name in homes:
                raise CommandError(
                    f"{one.path}:{one.line_of(('pipelines', name))}: {homes[name].path} has a "
                    f"pipeline {name!r}, too: rename one of them"
                )
            homes[name], pipelines[name] = one, entry
    return {**first.mapping, "pipelines": pipelines}


def problem_lines(error: PipelineFileError, sources: Sequence[Source]) -> list[str]:
    """Return a line for each problem, with the file's path and the number of the line."""
    lines = []
    for place, problem in error.problems:
        # If no file has the place, the problem concerns the first file as a whole.
        homes = [one for one in sources if place[:2] in one.lines] or sources
        lines.append(f"{homes[0].path}:{homes[0].line_of(place)}: {_dotted(place)}{problem}")
    return lines


def _dotted(place: Place) -> str:
    """Return a place for the text of an error."""
    words = [str(one) for one in place if one != "pipelines"]
    return ".".join(words) + ": " if words else ""


def read(path: str, *, text: str | None = None) -> Source:
    """
    Read a file of pipelines in YAML 1.2, of which JSON is a part.

    Relative working directories become absolute, starting from the directory of the file, which
    is the default.

    Args:
        path: Its path.
        text: Its content, if it is not to be read from there.

    Raises:
        CommandError: It is not YAML; the message has the path and the line. Or ruamel.yaml is
            not installed.
        OSError: It cannot be read.
    """
    content = _content(path) if text is None else text
    loaded = _load(path, content)
    lines: dict[Place, int] = {(): 1}
    try:
        mapping = _plain(loaded, (), lines)
    except CommandError as error:
        raise CommandError(f"{path}: {error}") from None
    if isinstance(mapping, dict) and "version" in mapping and "pipelines" not in mapping:
        name = mapping.pop("name", None) or os.path.splitext(os.path.basename(path))[0]
        mapping = {"version": mapping.pop("version"), "pipelines": {name: mapping}}
        own = ("version",), ("name",)
        lines = {
            place if place in own else ("pipelines", name, *place): line
            for place, line in lines.items()
        }
        lines[()] = lines["pipelines", name] = 1
    elif not isinstance(mapping, dict):
        mapping = {} if mapping is None else {"pipelines": mapping}
    _place_in(os.path.dirname(os.path.abspath(path)), mapping)
    return Source(path, mapping, lines)


def _content(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise CommandError(f"{path} is larger than {MOST_BYTES} bytes: split it into several files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text: {error}") from error


def _load(path: str, content: str) -> Any:
    """Return the content of a YAML document, whose collections know their lines."""
    try:
        from ruamel.yaml import YAML  # noqa: PLC0415 - optional: only files need it
        from ruamel.yaml.composer import Composer, ComposerError  # noqa: PLC0415 - the same
        from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415 - the same
        from ruamel.yaml.events import AliasEvent  # noqa: PLC0415 - the same
    except ImportError as error:
        raise CommandError(
            "files of pipelines need ruamel.yaml: pip install ruamel.yaml"
        ) from error

    class TreeComposer(Composer):
        """Refuses an alias of a value inside that value, which would be loaded as None."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.parser.check_event(AliasEvent):
                event = self.parser.peek_event()
                node = self.anchors.get(event.anchor)
                if node is not None and node.end_mark is None:  # not read to its end
                    why = f"the alias *{event.anchor} is inside the value that it repeats"
                    raise ComposerError(None, None, why, event.start_mark)
            return super().compose_node(parent, index)

    yaml = YAML(typ="rt", pure=True)
    yaml.Composer = TreeComposer
    try:
        return yaml.load(content)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        why = " ".join(str(error.problem or error.context or error).split())
        why = why.partition(" with value ")[0]  # of a key that comes twice; it may be a secret
        raise CommandError(f"{path}:{line}: this is not YAML: {why}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CommandError(f"{path} is not YAML: {first}") from error


def _plain(value: Any, place: Place, lines: dict[Place, int]) -> Any:
    """Return a YAML value as plain Python, and note the line of each place."""
    if len(lines) > MOST_PLACES or len(place) > DEEPEST:
        raise CommandError(
            f"it has more than {MOST_PLACES} entries or {DEEPEST} levels, with its aliases: "
            "split it into several files"
        )
    where: Any = getattr(value, "lc", None)
    if isinstance(value, Mapping):
        made = {}
        for key, inner in value.items():
            if not isinstance(key, str):  # str() would turn null and 'None' into the same name
                raise CommandError(
                    f"line {lines[place]}: the key {shown(key)} must be text; put it in quotes"
                )
            within: Place = (*place, str(key))
            lines[within] = _line(where, "key", key, lines[place])
            made[str(key)] = _plain(inner, within, lines)
        return made
    if isinstance(value, list):
        several = []
        for index, inner in enumerate(value):
            within = (*place, index)
            lines[within] = _line(where, "item", index, lines[place])
            several.append(_plain(inner, within, lines))
        return several
    for kind in (bool, str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else str(value)  # such as a date


def _line(where: Any, part: str, name: Any, around: int) -> int:
    """Return the line of a part of a collection; that around it where the loader knows none."""
    try:
        return int(getattr(where, part)(name)[0]) + 1
    except (AttributeError, LookupError, TypeError):
        return around  # it is merged by `<<`, or the collection has a tag


def _place_in(folder: str, mapping: dict[str, Any]) -> None:
    """Make the working directories and environment files of all pipelines absolute."""
    entries = mapping.get("pipelines")
    for entry in entries.values() if isinstance(entries, dict) else ():
        runs = ("command", "script", "inline_script", "actions")
        if isinstance(entry, dict) and any(entry.get(name) for name in runs):
            cwd = entry.get("cwd")
            if cwd is None or isinstance(cwd, str):
                entry["cwd"] = os.path.normpath(os.path.join(folder, cwd or ""))
            files = entry.get("env_file")
            if isinstance(files, str):
                entry["env_file"] = os.path.join(folder, files)
            elif isinstance(files, list):
                entry["env_file"] = [
                    os.path.join(folder, one) if isinstance(one, str) else one for one in files
                ]
