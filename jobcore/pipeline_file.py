"""
Pipelines as a file: the fields of a workspace's pipelines in YAML or JSON, checked.

A file has one of two forms. With `pipelines`, it maps names to pipelines. Without, it is one
pipeline of Matatika's PipelineML (`version: pipelines/v0.1`), named like the file. Unknown
fields are refused, because a misspelled one would otherwise be ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)

from jobcore import checks, durations, env_file
from jobcore.command import Command, checked_timeout
from jobcore.errors import CommandError, PipelineFileError, shown
from jobcore.hooks import HOOK_STATUSES
from jobcore.pipeline_source import Place
from jobcore.retries import Retries
from jobcore.schedule import Schedule
from jobcore.tuning import LONGEST_LATE, MOST_RETRIES

#: The version of the platform's format that can be read.
VERSION = "pipelines/v0.1"
#: Seconds that a time limit of 0 means in the platform's format.
PIPELINEML_TIMEOUT = 300.0


def _duration(value: Any, handler: Any, info: Any) -> Any:
    del handler
    return None if value is None else durations.seconds(value, info.field_name, CommandError)


def _delays(value: Any, handler: Any, info: Any) -> Any:
    if isinstance(value, list):
        return [_duration(one, handler, info) for one in value]
    return _duration(value, handler, info)


def _text_of_number(value: Any) -> Any:
    """Return an integer as text, as `LEVEL: 3` means. Other numbers have several spellings."""
    return str(value) if checks.is_integer(value) else value


_DURATION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": durations.PATTERN},
        {"type": "null"},
    ]
}
_Duration = Annotated[float | None, WrapValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
_Delays = Annotated[
    float | list[float] | None,
    WrapValidator(_delays),
    WithJsonSchema(
        {"anyOf": [*_DURATION_SCHEMA["anyOf"], {"type": "array", "items": _DURATION_SCHEMA}]}
    ),
]
_Text = Annotated[str, AfterValidator(lambda value: checks.text(value, "it", CommandError))]
_Name = Annotated[_Text, Field(min_length=1)]
_Variable = Annotated[
    str, BeforeValidator(_text_of_number), WithJsonSchema({"type": ["string", "integer"]})
]


class RetriesEntry(BaseModel):
    """The retries of a pipeline's jobs in a file."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Retries")

    max: int = Field(ge=0, le=MOST_RETRIES, description="The largest number of retries.")
    delay: _Delays = Field(
        10.0, description="The pause before the first retry; or a list of the pauses before each."
    )
    factor: float = Field(
        2.0, description="Each pause is this many times as long as the one before."
    )
    max_delay: _Duration = Field(3600.0, description="The longest pause.")
    jitter: float = Field(0.0, description="The part of each pause that is random, from 0 to 1.")
    on: list[Literal["error", "timeout", "lost"]] = Field(
        ["error", "lost"], min_length=1, description="The endings that are retried."
    )

    def to_retries(self) -> Retries:
        """Return what `create_pipeline` takes."""
        return Retries(**{**dict(self), "on": tuple(self.on)})


def _retries_of_number(value: Any) -> Any:
    return {"max": value} if checks.is_integer(value) else value


def _hooks(value: Any) -> list[list[str] | str] | None:
    """Return hooks as a list, each of them words or a line for the shell."""
    if value is None:
        return None
    one = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(word, str) for word in value)
    )
    several = [value] if one else value
    if not isinstance(several, list) or not all(map(_is_hook, several)) or not several:
        raise CommandError("it must be a list of words, a line for the shell, or a list of these")
    return several


def _is_hook(value: Any) -> bool:
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and word for word in words)


_Words = Annotated[list[str], Field(min_length=1)]
_Hooks = Annotated[
    list[Any] | None,
    BeforeValidator(_hooks, json_schema_input_type=str | _Words | list[str | _Words] | None),
]


class Entry(BaseModel):
    """A pipeline in a file."""

    model_config = ConfigDict(extra="forbid", strict=True, title="Pipeline")

    command: list[_Text] | None = Field(
        None, min_length=1, description="The program and its arguments, run without a shell."
    )
    script: _Text | None = Field(
        None, description="What it runs with /bin/sh -c, in place of a command."
    )
    inline_script: _Text | None = Field(
        None, description="The same as `script`, by its name in PipelineML."
    )
    actions: list[_Name] | None = Field(
        None,
        description="Lines for the shell, run in order until one fails; `script` replaces them.",
    )
    cwd: _Name | None = Field(
        None, description="Its working directory, relative to that of the file."
    )
    env: dict[str, _Variable] | None = Field(None, description="Variables for what it runs.")
    env_file: _Name | list[_Name] | None = Field(
        None,
        description="A file with lines KEY=VALUE, or several, relative to this one; `env` comes "
        "after them.",
    )
    timeout: _Duration = Field(
        None, description="Seconds, or a text such as 5m, after which a job is stopped."
    )
    max_retries: int = Field(
        0, ge=0, le=MOST_RETRIES, description="How often a job that ended ERROR is tried again."
    )
    retries: Annotated[
        RetriesEntry | None,
        BeforeValidator(_retries_of_number, json_schema_input_type=RetriesEntry | int | None),
    ] = Field(None, description="A number, or after which endings and pauses jobs are retried.")
    schedule: _Text | None = Field(
        None,
        description="A cron expression with five fields, or six with seconds first; or @daily.",
    )
    time_zone: _Text | None = Field(
        None, description="The time zone of the schedule, such as Europe/Berlin. [UTC]"
    )
    catch_up: Literal["skip", "last", "all"] | None = Field(
        None, description="Which late ticks of the schedule run. [skip]"
    )
    late_after: _Duration = Field(
        None, description="Seconds, or a text such as 5m, after which a tick is late. [60]"
    )
    triggered_by: list[_Name] = Field(
        default_factory=list,
        description="Names of pipelines; it runs each time one of them is COMPLETE.",
    )
    requires: list[_Name] = Field(
        default_factory=list,
        description="Names of pipelines; it runs each time all of them have been COMPLETE.",
    )
    group: _Name | None = Field(None, description="The group of its jobs.")
    on_complete: _Hooks = Field(None, description="Commands that run after a COMPLETE run.")
    on_error: _Hooks = Field(
        None, description="Commands that run after a run that ended ERROR and is not retried."
    )
    on_stopped: _Hooks = Field(None, description="Commands that run after a STOPPED run.")
    data_components: list[_Text] | None = Field(
        None, description="A field of PipelineML, kept in `properties` for your own executor."
    )
    properties: dict[str, Any] | None = Field(None, description="Your own small JSON object.")

    def fields(self, *, umask: int | None = None) -> dict[str, Any]:
        """
        Return the arguments of `create_pipeline`, except the name.

        Args:
            umask: The umask of its command; None: that of this process.
        """
        properties = self.properties
        if self.data_components is not None:
            properties = {"data_components": self.data_components, **(properties or {})}
        hooks = {
            name: [self._hook(one, umask) for one in getattr(self, name) or ()] or None
            for name in HOOK_STATUSES
        }
        return {
            **hooks,
            "command": self.command_of(umask=umask),
            "script": self._script(),
            "properties": properties,
            "retries": None if self.retries is None else self.retries.to_retries(),
            "max_retries": self.max_retries if self.retries is None else self.retries.max,
            **{
                name: getattr(self, name)
                for name in (
                    "timeout", "schedule", "time_zone", "catch_up", "late_after",
                    "triggered_by", "requires", "group",
                )
            },
        }  # fmt: skip

    def command_of(self, *, umask: int | None = None) -> Command | None:
        """Return what it runs, with its directory and environment; None: nothing."""
        script = self._script()
        argv: Any = self.command if script is None else script
        if argv is None:
            return None
        variables = {**self.variables_of_files(), **(self.env or {})}
        return Command(
            argv, shell=script is not None, umask=umask, cwd=self.cwd or None, env=variables
        )

    def variables_of_files(self) -> dict[str, str]:
        """Return the variables of `env_file`; those of later files replace earlier ones."""
        paths = [self.env_file] if isinstance(self.env_file, str) else self.env_file or []
        return {name: value for path in paths for name, value in env_file.read(path).items()}

    def _hook(self, words: list[str] | str, umask: int | None) -> Command:
        return Command(words, shell=isinstance(words, str), cwd=self.cwd, umask=umask)

    def _script(self) -> str | None:
        if self.script is not None or self.inline_script is not None:
            return self.inline_script if self.script is None else self.script
        return "\n".join(["set -e", *self.actions]) if self.actions else None


class PipelinesFile(BaseModel):
    """A file with several pipelines."""

    model_config = ConfigDict(extra="forbid", title="Pipelines")

    version: Literal["pipelines/v0.1"] | None = Field(
        None, description="With it, a time limit of 0 means 300 seconds, as in PipelineML."
    )
    pipelines: dict[_Name, Entry] = Field(description="The pipelines by name.")


class PipelineMLFile(Entry):
    """A file with one pipeline, in Matatika's PipelineML."""

    model_config = ConfigDict(title="PipelineML")

    version: Literal["pipelines/v0.1"] = Field(description="The version of the format.")
    name: _Name | None = Field(
        None, description="Its name. [the name of the file, without its suffix]"
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a file, for editors."""
    either: TypeAdapter[Any] = TypeAdapter(PipelinesFile | PipelineMLFile)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "jobcore pipelines",
        **either.json_schema(),
    }


# --- checks -------------------------------------------------------------------


def parse(mapping: Any) -> dict[str, Entry]:
    """
    Return the pipelines of a file's content, by name.

    Raises:
        PipelineFileError: Something in it is invalid; `problems` has the places.
    """
    mapping = _with_names(mapping)
    try:
        made = PipelinesFile.model_validate(mapping)
    except ValidationError as error:
        problems = [(_place(one["loc"]), _problem(one)) for one in error.errors()]
        raise PipelineFileError(problems) from None  # the cause shows values, such as secrets
    found = {
        name: _with_platform_timeout(one) if made.version is not None else one
        for name, one in made.pipelines.items()
    }
    problems = [
        (("pipelines", name, *place), problem)
        for name, entry in found.items()
        for place, problem in _problems(entry)
    ]
    problems += list(_names_differing_by_case(found))
    if problems:
        raise PipelineFileError(problems)
    return found


def _with_names(mapping: Any) -> Any:
    """Return the content of a file with one pipeline in the form of one with several."""
    if not isinstance(mapping, Mapping) or "pipelines" in mapping or "version" not in mapping:
        return mapping
    others = dict(mapping)
    version, name = others.pop("version"), others.pop("name", None)
    if not isinstance(name, str) or not name:
        raise PipelineFileError([(("name",), f"it must be a name, not {shown(name)}")])
    return {"version": version, "pipelines": {name: others}}


def _with_platform_timeout(entry: Entry) -> Entry:
    if entry.timeout == 0:
        return entry.model_copy(update={"timeout": PIPELINEML_TIMEOUT})
    return entry


def _problems(entry: Entry) -> Iterator[tuple[Place, str]]:
    """Yield what is wrong in a pipeline whose fields have the right types."""
    scripts = [name for name in ("script", "inline_script") if getattr(entry, name) is not None]
    if len(scripts) > 1:
        yield ("inline_script",), "it is another name for script: keep one of the two"
    what = [
        *scripts,
        *(["command"] if entry.command else []),
        *(["actions"] if entry.actions else []),
    ]
    if "command" in what and len(what) > 1:
        yield (what[0],), "there is a command, too: keep one of the two"
    if entry.retries is not None and "max_retries" in entry.model_fields_set:
        yield ("max_retries",), "retries has it, too: keep one of the two"
    for name in ("cwd", "env", "env_file"):
        if not what and getattr(entry, name):
            yield (name,), "it needs a command or a script"
    for field, check in (
        ("timeout", lambda: checked_timeout(entry.timeout)),
        (
            "late_after",
            lambda: (
                entry.late_after and checks.seconds(entry.late_after, "late_after", LONGEST_LATE)
            ),
        ),
        ("time_zone", lambda: entry.time_zone is None or Schedule("@daily", entry.time_zone)),
        ("retries", lambda: entry.retries and entry.retries.to_retries()),
        ("schedule", lambda: entry.schedule is None or Schedule(entry.schedule)),
        ("env_file", entry.variables_of_files),
    ):
        try:
            check()
        except (ValueError, OSError) as error:
            yield (field,), str(error)
            if field == "env_file":
                return  # the command cannot be checked without it
    try:
        entry.command_of()
    except ValueError as error:
        yield (what[0] if what else "cwd",), str(error)


def _names_differing_by_case(entries: Mapping[str, Entry]) -> Iterator[tuple[Place, str]]:
    """Yield the names that differ only by case."""
    first: dict[str, str] = {}
    for name in entries:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            yield (
                ("pipelines", name),
                f"the file has {other!r}, too, and the case of names is ignored",
            )


def _place(loc: Place) -> Place:
    """Return the place of a problem that pydantic found."""
    return tuple(one for one in loc if one != "[key]")


#: By pydantic's type of an error: what the value must be.
_MUST = {
    "string_type": "it must be text",
    "list_type": "it must be a list",
    "dict_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "model_attributes_type": "it must be a mapping",
    "int_type": "it must be an integer",
    "too_short": "it must not be empty",
    "string_too_short": "it must not be empty",
}


def _problem(error: Any) -> str:
    """Return the text for a problem that pydantic found. It shows no value of a variable."""
    kind, loc, given = error["type"], error["loc"], error["input"]
    if kind == "extra_forbidden":
        kind = PipelinesFile if len(loc) == 1 else RetriesEntry if "retries" in loc else Entry
        known = sorted(kind.model_fields)
        near = difflib.get_close_matches(str(loc[-1]), known, 1)
        meant = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(known)}"
        return f"there is no such field; {meant}"
    if kind == "missing":
        return f"the file needs pipelines, a mapping of names to pipelines; or version: {VERSION}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if "command" in loc and kind == "list_type" and isinstance(given, str):
        return "it must be a list of words; put a line for the shell into script"
    text = _MUST.get(kind) or error["msg"].replace("Input should be", "it must be")
    if isinstance(given, (Mapping, list)) or given in ("", None):
        return text
    if kind == "string_type":
        text = f"{text}; put it in quotes"
    return text if "env" in loc else f"{text}, not {shown(given, 80)}"
