"""
The reference comes from docstrings: what each public name must say is held here.

`Args:`, `Attributes:` and `Raises:` are read as `python -m pydoc` shows them. A
docstring may send the reader on: "Args and errors are those of `submit`".
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import dataclasses
import enum
import importlib
import inspect
import itertools
import os
import pydoc
import re
import typing
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pydantic
import pytest

import jobcore
from jobcore import JobcoreError, JobManager, wire
from jobcore.operations import job_filters
from jobcore.storage import reading
from jobcore.testing.parts import parts
from tests.cases import every
from tests.processes import ROOT

#: Modules whose `__all__` is public; `jobcore.testing` only where it is there.
MODULES = [jobcore, wire]
if importlib.util.find_spec("jobcore.testing"):
    MODULES.append(importlib.import_module("jobcore.testing"))

SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises|Warns):\n((?: {4}.*\n|\n)+)", re.MULTILINE
)
ENTRY = re.compile(r"^ {4}(\S[^:\n]*):(.*(?:\n {8}.*|\n(?= {8}))*)", re.MULTILINE)


class Docstring:
    """A docstring, taken apart: what it says first, and its sections."""

    def __init__(self, thing):
        self.text = (inspect.getdoc(thing) or "") + "\n"
        found = dict(SECTION.findall(self.text))
        self.said = " ".join(SECTION.sub("", self.text).split())
        self.args = self._entries(found.get("Args", ""))
        self.attributes = self._entries(found.get("Attributes", ""))
        self.raises = self._entries(found.get("Raises", ""))
        self.returns = found.get("Returns", "") or found.get("Yields", "")

    @staticmethod
    def _entries(body):
        return {
            name.strip("* "): text
            for names, text in ENTRY.findall(body)
            for name in names.split(", ")
        }

    def sends_on(self, what):
        """Return the names whose `what` ("args" or "errors") hold here, too."""
        found = re.findall(r"([\w, ]+) are those of ((?:`\w+`(?:, | and )?)+)", self.said)
        return [
            name
            for kinds, names in found
            if what in kinds.lower()
            for name in re.findall(r"`(\w+)`", names)
        ]


# --- what is public ---------------------------------------------------------------


def public():
    """Return everything that has to be documented, by dotted name."""
    found = {}
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{module.__name__}.{name}"] = thing
            if inspect.isclass(thing):
                found.update(
                    (f"{module.__name__}.{name}.{key}", member)
                    for key, member in vars(thing).items()
                    # `model_` is pydantic's, and `test_` what pytest calls, with fixtures.
                    if not key.startswith(("_", "model_", "test_"))
                    and _is_member(member)  # those are pydantic's
                )
    return found


def _is_member(member):
    return inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))


def parameters(thing):
    """Return what callers pass, by name, with its annotation as text."""
    if isinstance(thing, property):
        return {}
    if inspect.isclass(thing):
        if not takes_arguments(thing):
            return {}
        thing = thing.__init__
    thing = getattr(thing, "__func__", thing)
    return {
        name: str(parameter.annotation)
        for name, parameter in inspect.signature(thing).parameters.items()
        if name not in ("self", "cls")
    }


def takes_arguments(kind):
    """Tell whether users of a class make its objects themselves: not models, errors and words."""
    return not (
        issubclass(kind, (pydantic.BaseModel, BaseException, enum.Enum, tuple))
        or getattr(kind, "_is_protocol", False)
        or "__init__" not in vars(kind)
    )


def fields(kind):
    """Return the facts that objects of a class have, by name, with their annotation as text."""
    if issubclass(kind, pydantic.BaseModel):
        own = {name: str(field.annotation) for name, field in kind.model_fields.items()}
        return {name: text for name, text in own.items() if name in kind.__annotations__}
    if issubclass(kind, tuple):
        return {name: str(kind.__annotations__[name]) for name in kind._fields}
    if "__match_args__" in vars(kind) and not dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {name: str(hints[name]) for name in kind.__match_args__}
    if issubclass(kind, BaseException) and "__init__" in vars(kind):
        source = inspect.getsource(kind.__init__)
        return dict.fromkeys(re.findall(r"self\.(\w+) =", source), "")
    if issubclass(kind, enum.Enum):
        return dict.fromkeys(kind.__members__, "")
    return {}


def described(thing, what):
    """Return the entries that hold for `thing`: its own and those it sends the reader on to."""
    doc = Docstring(thing)
    found = dict(doc.args if what == "args" else doc.raises)
    for name in doc.sends_on("args" if what == "args" else "errors"):
        found = {**described(PUBLIC_BY_SHORT_NAME[name], what), **found}
    return found


PUBLIC = public()
PUBLIC_BY_SHORT_NAME = {
    **{name.rpartition(".")[2]: thing for name, thing in PUBLIC.items()},
    **{name: verb for name, verb in vars(JobManager).items() if not name.startswith("_")},
}
CALLABLE = {name: thing for name, thing in PUBLIC.items() if parameters(thing)}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
VERBS = {
    name: verb for name, verb in vars(JobManager).items()
    if not name.startswith("_") and inspect.isfunction(verb)
}  # fmt: skip


@every(name=PUBLIC)
def test_docstring_begins_with_a_sentence(name):
    """A docstring begins with a sentence, on a line or two of its own."""
    first = Docstring(PUBLIC[name]).text.lstrip("\n").partition("\n\n")[0].strip()

    assert re.match(r"[A-Z0-9`].*[.:]$", first, re.DOTALL), first
    assert first.count("\n") < 2


# --- what goes in -----------------------------------------------------------------


def explains_itself(position, parameter):
    """Tell whether a parameter needs no words: the id of what a verb is about, and first."""
    return position == 0 and re.fullmatch(r"(job|workspace|pipeline)_id", parameter)


@every(name=CALLABLE)
def test_every_parameter_is_described(name):
    """`Args` has each one, except the id of the object that a verb is about."""
    has = parameters(CALLABLE[name])
    said = described(CALLABLE[name], "args")
    missing = [
        one for position, one in enumerate(has)
        if one not in said and not explains_itself(position, one)
    ]  # fmt: skip

    assert missing == []


@every(name=CALLABLE)
def test_only_parameters_are_described_in_their_order(name):
    """`Args` has the parameters of the signature, in the same order."""
    has = list(parameters(CALLABLE[name]))
    said = list(Docstring(CALLABLE[name]).args)

    assert said == [one for one in has if one in said]


@every(name=[name for name, kind in CLASSES.items() if fields(kind)])
def test_every_fact_is_described(name):
    """Fields of models, attributes of errors and members of enumerations are in `Attributes`."""
    assert list(Docstring(CLASSES[name]).attributes) == list(fields(CLASSES[name]))


def test_constants_are_described_by_their_module():
    """A constant has no docstring, so `help(module)` tells what it is."""
    missing = [
        f"{module.__name__}.{name}"
        for module in MODULES
        for name in module.__all__
        if name.isupper() and name not in Docstring(module).attributes
    ]

    assert missing == []


# --- units --------------------------------------------------------------------------

#: Numbers with a fraction that count what the job counts, not seconds.
COUNTED = {"done", "total", "factor", "jitter"}

NOTHING = r"(?!)"

UNITS = (
    # what it is known by: name, or annotation; what must be said of it
    (
        r"timeout|grace|older_than|_seconds$|patience|pause(?!d)|delay",
        r"\bfloat\b",
        r"(?i)seconds?\b",
    ),
    (r"bytes|max_rss|output_limit|_size$", NOTHING, r"(?i)\bbytes?\b|\b[KM]iB\b"),
    (r"_ns$", NOTHING, r"nanoseconds"),
    (NOTHING, r"\bdatetime\b|\bMoment\b", r"\bUTC\b|time zone"),
)


def numbers():
    """Return everything with a unit: its dotted name, and what is said of it."""
    for name, thing in PUBLIC.items():
        doc = Docstring(thing)
        said = described(thing, "args")
        for one, annotation in parameters(thing).items():
            yield f"{name}.{one}", annotation, said.get(one, "")
        if inspect.isclass(thing):
            for one, annotation in fields(thing).items():
                # "Times are UTC" may be said of all fields at once.
                text = doc.attributes.get(one, "")
                yield f"{name}.{one}", annotation, text + doc.said * ("datetime" in annotation)


@pytest.mark.parametrize(("known_by", "typed", "unit"), UNITS, ids=[unit[2] for unit in UNITS])
def test_every_number_has_a_unit(known_by, typed, unit):
    """Durations are in seconds, sizes in bytes, and a time has a zone; each says so."""
    found = [
        (name, text) for name, annotation, text in numbers()
        if name.rpartition(".")[2] not in COUNTED
        and (re.search(known_by, name.rpartition(".")[2]) or re.search(typed, annotation))
    ]  # fmt: skip

    assert found
    assert [name for name, text in found if not re.search(unit, f"{name}: {text}")] == []


# --- what comes out -----------------------------------------------------------------


@every(name=[n for n, t in PUBLIC.items() if inspect.isfunction(t)])
def test_docstring_describes_the_result(name):
    """Where something is returned the first word says so, or there is a section of its own."""
    thing = PUBLIC[name]
    answer = str(inspect.signature(thing).return_annotation)
    doc = Docstring(thing)

    assert answer != str(inspect.Signature.empty)
    if not re.search(r"(^|[\[ ])(None|NoReturn)\]?$", answer):
        first = doc.said.partition(". ")[0]
        assert doc.returns or re.search(r"^(Return|Yield|Give|Tell)\b|\breturn\b", first)


#: Verbs that write nothing: every other one says what is true when it returns.
LOOKING = re.compile(
    r"(as_completed|get|find|limit|list|count|wait|follow|drain|log|tail|history|skips|check|events|export|subscribe|result)(_|s?$)|^(statistics|retention|usage)$"
)
#: What is true afterwards, in one of these ways: how long it lasts, or what has happened by then.
LASTING = re.compile(
    r"\b(survives?|durable|committed|power failure)\b|\b(this|it|which) returns\b|\breturns when\b",
    re.IGNORECASE,
)


@every(name=[name for name in VERBS if not LOOKING.match(name)])
def test_docstring_of_a_changing_method_states_durability(name):
    """It says how far its work is durable, or what has happened by then."""
    assert LASTING.search(Docstring(VERBS[name]).said)


# --- errors -------------------------------------------------------------------------

ERRORS = {
    **{name: kind for name, kind in vars(builtins).items() if inspect.isclass(kind)},
    **{name: kind for module in MODULES for name, kind in vars(module).items()},
}


@every(name=PUBLIC)
def test_errors_are_real(name):
    """`Raises` names exceptions that there are and that a caller can import."""
    wrong = [
        one for one in Docstring(PUBLIC[name]).raises
        if not (inspect.isclass(ERRORS.get(one)) and issubclass(ERRORS[one], Exception))
    ]  # fmt: skip

    assert wrong == []


def test_common_errors_are_described_in_the_class():
    """The class says what every method may raise, and every one that takes an id."""
    said = Docstring(JobManager).said

    assert re.search(r"[Ee]very method may raise `StoreError`", said)
    assert re.search(r"`ArgumentError`.* so is a list in the place of an id", said)


#: Verbs whose time-out is that of a command.
LIMITING = ("create_job", "update_job")


def must_name(verb):
    """Return the errors that follow from what a verb takes and gives."""
    has, answer = parameters(verb), str(inspect.signature(verb).return_annotation)
    found = set()
    for parameter, error in (
        ("job_id", "JobNotFound"),
        ("workspace_id", "WorkspaceNotFound"),
        ("pipeline_id", "PipelineNotFound"),
        ("command", "CommandError"),
        ("commands", "CommandError"),
        ("target", "CommandError"),
        ("data", "CommandError"),
        ("properties", "CommandError"),
        ("exit_code", "ArgumentError"),
        ("limit", "ArgumentError"),
        ("sequence", "ArgumentError"),
        ("before", "ArgumentError"),
        ("status", "ArgumentError"),
        ("timeout", "WaitTimeout"),
    ):
        if parameter in has:
            found.add(error)
    if verb.__name__ in LIMITING:
        found -= {"WaitTimeout"}
    elif "timeout" in has:
        found.add("ArgumentError")
    # Its iterator ends with the time, as it may end anyhow; or it returns None.
    if verb.__name__ in ("events", "events_async", "claim_job", "claim_job_async"):
        found.discard("WaitTimeout")
    if re.search(r"Iterator\[(LogLine|bytes)\]", answer):
        found.add("JobDeleted")
    if "Job" in answer and "pipeline_id" in has and not LOOKING.match(verb.__name__):
        found.add("PipelineAlreadyRunning")
    return found - ({"PipelineAlreadyRunning"} if verb.__name__ == "prune" else set())


@every(name=VERBS)
def test_a_verb_names_what_it_may_raise(name):
    """Whoever takes an id names the error for an unknown one, and so on, by a table."""
    assert must_name(VERBS[name]) - set(described(VERBS[name], "errors")) == set()


#: What hosts pass by mistake, of every kind.
MISTAKES = (
    object(), None, True, -1, 2**70, 0.5, float("nan"), float("inf"), "", "\udcff", "a\0b", b"x",
    [], {}, [object()], {1: object()}, ("",), "0" * 32,
)  # fmt: skip


def ended(jobs):
    """Return a job that nobody has to wait for."""
    return jobs.cancel_job(jobs.create_job("TASK").id)


def valid(jobs, name):
    """Return an argument that each parameter of a verb accepts."""
    return {
        "job_id": lambda: ended(jobs).id,
        "job_ids": lambda: [ended(jobs).id],
        "workspace_id": lambda: jobs.get_workspace().id,
        "pipeline_id": lambda: jobs.create_pipeline(str(uuid4()), ["true"]).id,
        "command": lambda: ["true"],
        "commands": lambda: [["true"]],
        "target": lambda: "os:getpid",
        "callback": lambda: print,
        "name": lambda: "name",
        "n": lambda: 1,
        "state": lambda: {"a": 1},
        "id_prefix": lambda: "3f2a",
        "lines": lambda: "line",
        "older_than": lambda: 0,
        "timeout": lambda: 0,
        "exit_code": lambda: 0,
        "done": lambda: 0,
        "path": lambda: f"{parts(jobs).database.path}.{uuid4()}",
        "group": lambda: None,
        "slots": lambda: 1,
        "mapping": lambda: {"pipelines": {"p": {"script": "true"}}},
        "type": lambda: jobs.create_job("TASK").type,  # which can be claimed at once
    }[name]()


def positional(verb):
    """Return the parameters without which a verb cannot be called."""
    return [
        one for one in inspect.signature(verb).parameters.values()
        if one.name != "self"
        and (one.default is one.empty or one.name == "timeout")
        and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]  # fmt: skip


def take(answer):
    """Take all that is returned, also where it comes one by one."""
    if inspect.iscoroutine(answer):
        asyncio.run(answer)
    elif isinstance(answer, AsyncIterator):

        async def all_of_it():
            return [item async for item in answer]

        asyncio.run(all_of_it())
    elif isinstance(answer, Iterator):
        list(itertools.islice(answer, 100))
    elif callable(answer):
        answer()  # ends a subscription


def mistakes(verb):
    """Return each parameter of a verb, and each of its filters, with each mistake."""
    taken = inspect.signature(verb).parameters
    for parameter in [*taken.values(), *(FILTERS if "filters" in taken else ())]:
        if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            for mistake in MISTAKES:
                yield parameter, mistake


FILTERS = [inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY) for one in job_filters.OF_EVENTS]


@pytest.mark.parametrize("name", [name for name in VERBS if name != "close"])
def test_methods_raise_the_documented_errors(jobs, name, monkeypatch):
    """Any argument is taken or refused by an error that `Raises` names, and costs no connection."""
    thrown = []
    monkeypatch.setattr(reading, "discard", thrown.append)
    monkeypatch.chdir(os.path.dirname(parts(jobs).database.path))  # some write files
    verb = VERBS[name]
    # Whatever is wrong with the database, it is not an argument.
    named = tuple(ERRORS[one] for one in described(verb, "errors") if one != "StoreError")
    ids = {one.name for one, _ in mistakes(verb) if one.name.endswith("_id")}
    surprises = []
    for parameter, mistake in mistakes(verb):
        arguments = {one.name: valid(jobs, one.name) for one in positional(verb)}
        several = [mistake] if parameter.kind is parameter.VAR_POSITIONAL else []
        if not several:
            arguments[parameter.name] = mistake
        first = [
            arguments.pop(one.name) for one in positional(verb)
            if several or one.kind is one.POSITIONAL_ONLY
        ]  # fmt: skip
        try:
            take(verb(jobs, *first, *several, **arguments))
        except Exception as error:  # noqa: BLE001 - which one it is, is the question
            of_an_id = parameter.name in ids and type(error) is jobcore.ArgumentError
            if not isinstance(error, named) and not of_an_id:
                surprises.append(f"{parameter.name}={mistake!r:.40}: {error!r:.150}")

    assert surprises == thrown == []
    assert not {Exception, JobcoreError} & set(named)


# --- where it is read -----------------------------------------------------------------


def test_documented_pydoc_command_prints_each_page():
    """What README says to type prints a page for each public name that it mentions."""
    text = (ROOT / "README.md").read_text()
    line = next(line for line in text.splitlines() if "python -m pydoc" in line)
    names = re.findall(r"jobcore\.[\w.]+", line)

    assert "jobcore.JobManager" in names
    assert [name for name in names if pydoc.locate(name) is None] == []
    assert "Create a QUEUED job" in pydoc.render_doc("jobcore.JobManager")


# --- that it is typed -------------------------------------------------------------------

#: The file that `mypy --strict` and pyright read, as a host's own.
HOST = ast.parse((ROOT / "tests" / "typing_api.py").read_text())
#: Every name and every attribute in it.
USED = {node.id for node in ast.walk(HOST) if isinstance(node, ast.Name)} | {
    node.attr for node in ast.walk(HOST) if isinstance(node, ast.Attribute)
}


def test_a_host_uses_every_public_name():
    """Nothing is public that the type checkers have not seen in use."""
    names = [name for module in MODULES for name in module.__all__]

    assert sorted(set(names) - USED) == []


@every(name=[name for name, kind in CLASSES.items() if fields(kind)])
def test_a_host_reads_every_fact(name):
    """Each field of what is returned, and each fact of an error, is read with its type."""
    kind = CLASSES[name]
    members = [] if issubclass(kind, enum.Enum) else [*fields(kind)]
    members += [key for key, one in vars(kind).items() if isinstance(one, property)]

    assert sorted(set(members) - USED) == []


def passed():
    """Return which parameters calls of each name pass, over all calls in the file."""
    found = {}
    for call in ast.walk(HOST):
        if not isinstance(call, ast.Call):
            continue
        function = call.func
        short = getattr(function, "attr", None) or getattr(function, "id", None)
        for name, thing in PUBLIC.items():
            if name.rpartition(".")[2] == short:
                has = list(parameters(thing))
                said = found.setdefault(short, set())
                said.update(has[: len(call.args)], (word.arg for word in call.keywords))
    return found


PASSED = passed()
CALLED = {
    name: thing for name, thing in CALLABLE.items()
    if not name.endswith((".from_row", ".from_rows", ".from_entry"))  # a host has no rows
    # What a host itself implements, jobcore calls.
    and ".ExecutorContract." not in name
    and not getattr(CLASSES.get(name.rpartition(".")[0]), "_is_protocol", False)
}  # fmt: skip


@every(name=CALLED)
def test_a_host_passes_every_argument(name):
    """Each parameter is passed in some call; those that a verb hands on are its last."""
    handed_on = {"options", "changes", "fields", "filters"}
    if name.endswith(".submit_function"):
        handed_on.add("kwargs")  # which in `function_command` is an argument as others
    wanted = [one for one in parameters(CALLED[name]) if one not in handed_on]

    assert sorted(set(wanted) - PASSED.get(name.rpartition(".")[2], set())) == []


@every(name=VERBS)
def test_a_host_calls_every_verb(name):
    """Those without arguments, too."""
    assert name in PASSED
