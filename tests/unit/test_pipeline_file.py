"""Files of pipelines: what is read, and errors that name the file, the line and the remedy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from jobcore import CommandError, PipelineFileError, Retries, pipeline_source
from jobcore.operations.pipelines import FIELDS
from jobcore.pipeline_file import Entry, json_schema, parse
from jobcore.pipeline_source import merged, problem_lines, read
from tests.cases import each


def problems(text, path="/srv/p.yml"):
    """Return what is said about a file with this text."""
    source = read(path, text=text)
    with pytest.raises(PipelineFileError) as caught:
        parse(source.mapping)
    return problem_lines(caught.value, [source])


def entry(text, path="/srv/app/p.yml"):
    """Return the only pipeline of a file with this text."""
    (only,) = parse(read(path, text=text).mapping).values()
    return only


WRONG = {
    "a misspelled field": (
        "pipelines:\n  load:\n    script: x\n    shedule: '@daily'\n",
        ["/srv/p.yml:4: load.shedule: there is no such field; did you mean schedule?"],
    ),
    "an unknown field": (
        "pipelines:\n  load: {script: x, zzz: 1}\n",
        ["/srv/p.yml:2: load.zzz: there is no such field; the fields are actions, "],
    ),
    "a line as a command": (
        "pipelines:\n  load:\n    command: echo hi\n",
        ["/srv/p.yml:3: load.command: it must be a list of words; put a line for the shell into "],
    ),
    "numbers as words": (
        "pipelines:\n  load:\n    command: [sleep, 3]\n",
        ["/srv/p.yml:3: load.command.1: it must be text; put it in quotes, not 3"],
    ),
    "a schedule": (
        "pipelines:\n  load:\n    script: x\n    schedule: '30 4 * *'\n",
        ["/srv/p.yml:4: load.schedule: '30 4 * *' is not a cron expression"],
    ),
    "a time zone": (
        "pipelines:\n  load:\n    script: x\n    time_zone: Mars/Base\n",
        ["/srv/p.yml:4: load.time_zone: "],
    ),
    "durations": (
        "pipelines:\n  load:\n    script: x\n    timeout: soon\n    late_after: -1\n",
        [
            "/srv/p.yml:4: load.timeout: timeout must be a number of seconds, or a text such as",
        ],
    ),
    "no time": (
        "pipelines:\n  load:\n    script: x\n    timeout: 0\n    late_after: -1\n",
        [
            "/srv/p.yml:4: load.timeout: timeout must be a number of seconds above 0",
            "/srv/p.yml:5: load.late_after: late_after must be 0 to",
        ],
    ),
    "retries": (
        "pipelines:\n  load:\n    script: x\n    retries: {max: 2, on: [never], pause: 3}\n",
        [
            "/srv/p.yml:4: load.retries.on.0: it must be 'error', 'timeout' or 'lost', not 'never'",
            "/srv/p.yml:4: load.retries.pause: there is no such field; the fields are delay, ",
        ],
    ),
    "impossible retries": (
        "pipelines:\n  a:\n    script: x\n    retries: {max: 2, factor: 0.5}\n    max_retries: 3\n",
        [
            "/srv/p.yml:5: a.max_retries: retries has it, too: keep one of the two",
            "/srv/p.yml:4: a.retries: factor must be a number from 1 to 1000, not 0.5",
        ],
    ),
    "hooks": (
        "pipelines:\n  load:\n    script: x\n    on_error: [[a, 3]]\n    on_complete: {a: b}\n",
        [
            "/srv/p.yml:5: load.on_complete: it must be a list of words, a line for the shell, or",
            "/srv/p.yml:4: load.on_error: it must be a list of words, a line for the shell, or",
        ],
    ),
    "two things to run": (
        "pipelines:\n  load:\n    script: x\n    command: [x]\n",
        ["/srv/p.yml:3: load.script: there is a command, too: keep one of the two"],
    ),
    "a script twice": (
        "pipelines:\n  load:\n    script: x\n    inline_script: y\n",
        ["/srv/p.yml:4: load.inline_script: it is another name for script: keep one of the two"],
    ),
    "an environment for nothing": (
        "pipelines:\n  load:\n    env: {A: b}\n",
        ["/srv/p.yml:3: load.env: it needs a command or a script"],
    ),
    "twins": (
        "pipelines:\n  load: {script: x}\n  LOAD: {script: x}\n",
        ["/srv/p.yml:3: LOAD: the file has 'load', too, and the case of names is ignored"],
    ),
    "several at once": (
        "pipelines:\n  a: {script: 1}\n  b: 5\n  c: {max_retries: -1, script: x}\n",
        [
            "/srv/p.yml:2: a.script: it must be text; put it in quotes, not 1",
            "/srv/p.yml:3: b: it must be a mapping, not 5",
            "/srv/p.yml:4: c.max_retries: it must be greater than or equal to 0, not -1",
        ],
    ),
    "no pipelines": ("", ["/srv/p.yml:1: the file needs pipelines, a mapping of names"]),
    "a list": ("- a\n", ["/srv/p.yml:1: it must be a mapping"]),
    "another version": (
        "version: pipelines/v2\nscript: x\n",
        ["/srv/p.yml:1: version: it must be 'pipelines/v0.1', not 'pipelines/v2'"],
    ),
    "a field of PipelineML": (
        "version: pipelines/v0.1\n\nscrpt: x\n",
        ["/srv/p.yml:3: p.scrpt: there is no such field; did you mean script?"],
    ),
}


@each("what", WRONG)
def test_problems_name_file_line_field_and_remedy(what):
    """All problems of a file are reported at once, one on each line."""
    text, expected = WRONG[what]
    found = problems(text)

    assert len(found) == len(expected), found
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


def test_no_message_shows_the_value_of_a_variable():
    """Neither a wrong type nor a key that comes twice."""
    wrong = problems("pipelines:\n  a:\n    script: x\n    env: {A: [hunter2], B: 2.5}\n")

    assert len(wrong) == 2
    assert not [line for line in wrong if "hunter2" in line or "2.5" in line]
    with pytest.raises(CommandError) as caught:
        read("p.yml", text="pipelines:\n  a:\n    env: {A: hunter2, A: hunter3}\n")
    assert str(caught.value) == 'p.yml:3: this is not YAML: found duplicate key "A"'


def test_merged_fields_are_read():
    """The line of a merged field is that of the pipeline."""
    text = "pipelines:\n  a: &a {script: x}\n  b: {<<: *a, timeout: 5}\n"
    assert [
        (one.script, one.timeout) for one in parse(read("p.yml", text=text).mapping).values()
    ] == [("x", None), ("x", 5)]
    assert problems(text.replace("script", "scrip"))[-1].startswith("/srv/p.yml:3: b.scrip: ")


def test_tags_run_nothing():
    """They are left out."""
    text = "pipelines:\n  a: !!python/object/apply:os.system [exit]\n"
    assert problems(text) == ["/srv/p.yml:2: a: it must be a mapping"]


@each(
    ("text", "message"),
    [
        ("a: [1", r"p\.yml:1: this is not YAML: expected"),
        ("a:\n\t- x", r"p\.yml:2: this is not YAML: found character"),
        ("a: 1\n---\nb: 2\n", r"p\.yml:.*this is not YAML: "),
        ("a: " + "[" * 200 + "]" * 200, "more than .* entries or 100 levels"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
            "more than 200000 entries",
        ),
        ("pipelines:\n  null: {script: x}\n", r"p\.yml: line 1: the key None must be text; put"),
        ("pipelines:\n  load:\n    env: {1: x}\n", r"p\.yml: line 3: the key 1 must be text"),
        *(
            (text, rf"p\.yml:{line}: this is not YAML: the alias \*a is inside the value that")
            for text, line in (
                ("pipelines:\n  p:\n    properties: &a\n      x: *a\n", 4),
                ("pipelines:\n  p: &a\n    properties: {x: [1, *a]}\n", 3),
                ("pipelines:\n  p: {command: &a [x, *a]}\n", 2),
                ("pipelines: &a\n  p: {<<: *a}\n", 2),
                ("&a [*a]\n", 1),
            )
        ),
        ("? [a, b]\n: x\n", r"p\.yml: line 1: the key .* must be text; put it in quotes"),
    ],
)
def test_invalid_yaml_is_refused(text, message):
    """With the line; aliases cannot fill the memory."""
    with pytest.raises(CommandError, match=message):
        read("p.yml", text=text)


def test_files_that_cannot_be_text_are_refused(tmp_path, monkeypatch):
    """Other encodings, and files that are far too large."""
    path = tmp_path / "p.yml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CommandError, match="is not UTF-8 text"):
        read(str(path))
    monkeypatch.setattr(pipeline_source, "MOST_BYTES", 10)
    path.write_bytes(b"a: 34567890")
    with pytest.raises(CommandError, match="is larger than 10 bytes"):
        read(str(path))


def test_yaml_words_are_texts():
    """YAML 1.2: `on` and `yes` are texts, and a time of day is no number."""
    found = entry("pipelines: {a: {script: x, env: {on: yes, AT: 12:30, N: 3}}}")

    assert found.env == {"on": "yes", "AT": "12:30", "N": "3"}


def test_directories_start_from_the_file():
    """It is the default, too, so it does not matter where a file is applied."""
    assert entry("pipelines: {a: {script: x}}").cwd == "/srv/app"
    assert entry("pipelines: {a: {script: x, cwd: ../data}}").cwd == "/srv/data"
    assert entry("pipelines: {a: {script: x, cwd: /opt}}").cwd == "/opt"
    assert entry("pipelines: {a: {properties: {x: 1}}}").cwd is None


def test_retries_are_a_number_or_all_about_them():
    """Pauses may be texts such as 5m."""
    number = entry("pipelines: {a: {script: x, retries: 3}}").fields()
    whole = entry(
        "pipelines: {a: {script: x, retries: {max: 2, delay: 5m, on: [error, timeout]}}}"
    ).fields()

    several = entry("pipelines: {a: {script: x, retries: {max: 2, delay: [10, 5m]}}}").fields()

    assert several["retries"] == Retries(2, delay=(10, 300))
    assert problems("pipelines: {a: {script: x, retries: {max: 2, delay: [10, x]}}}")[0].startswith(
        "/srv/p.yml:1: a.retries.delay: delay must be a number of seconds, or a text such as 90s"
    )
    assert (number["retries"], number["max_retries"]) == (Retries(3), 3)
    assert (whole["retries"], whole["max_retries"]) == (
        Retries(2, delay=300, on=("error", "timeout")), 2,
    )  # fmt: skip


def test_variables_of_files_come_before_those_of_the_file(tmp_path):
    """Their paths are relative to the file of pipelines; what is wrong has its line there."""
    (tmp_path / "a.env").write_text("A=1\nB=1\nC=1\n")
    (tmp_path / "b.env").write_text("B=2\nC=2\n")
    text = "pipelines:\n  p:\n    script: x\n    env: {C: 3}\n    env_file: [a.env, b.env]\n"
    path = str(tmp_path / "p.yml")
    one = entry(text, path)

    assert one.command_of().env == {"A": "1", "B": "2", "C": "3"}
    assert entry(text.replace("[a.env, b.env]", "b.env"), path).command_of().env["B"] == "2"
    (told,) = problems(text.replace("b.env", "none"), path)
    assert told.startswith(f"{path}:5: p.env_file: [Errno 2] No such file")
    (tmp_path / "b.env").write_text("hunter2\n")
    (told,) = problems(text, path)
    assert (
        told
        == f"{path}:5: p.env_file: {tmp_path}/b.env:1: it must be KEY=VALUE, with matching quotes"
    )


def test_json_is_yaml():
    """A program can write the file."""
    assert entry(json.dumps({"pipelines": {"a": {"command": ["x"]}}}, indent=2)).command == ["x"]


@pytest.mark.parametrize(("given", "expected"), [("0", 300.0), ("60", 60.0), ("5m", 300.0)])
def test_time_limit_of_0_in_pipeline_ml_is_the_platforms(given, expected):
    """With the version, in both forms."""
    one = f"version: pipelines/v0.1\nscript: x\ntimeout: {given}\n"
    many = f"version: pipelines/v0.1\npipelines:\n  p:\n    script: x\n    timeout: {given}\n"

    assert (entry(one).timeout, entry(many).timeout) == (expected, expected)


def test_pipeline_ml_is_named_like_its_file():
    """Or as it says."""
    text = "version: pipelines/v0.1\nscript: x\n"

    assert list(parse(read("/a/load.yml", text=text).mapping)) == ["load"]
    assert list(parse(read("/a/load.yml", text=text + "name: other\n").mapping)) == ["other"]
    assert list(parse({"version": "pipelines/v0.1", "name": "n", "script": "x"})) == ["n"]
    with pytest.raises(PipelineFileError, match="name: it must be a name, not None"):
        parse({"version": "pipelines/v0.1", "script": "x"})


def test_actions_run_in_order_until_one_fails():
    """They are lines of one script; a script of its own replaces them."""
    text = "version: pipelines/v0.1\nactions: [echo a, 'false', echo b]\n"
    script = entry(text).fields()["script"]
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, check=False)

    assert (done.stdout, done.returncode) == (b"a\n", 1)
    assert entry(text + "inline_script: x\n").fields()["script"] == "x"


def test_several_files_are_one():
    """Each problem names its file; the same name in two files is refused."""
    first = read("/srv/1.yml", text="pipelines: {a: {script: x}}")
    second = read("/srv/2.yml", text="\npipelines:\n  b: {skript: x}\n")
    with pytest.raises(PipelineFileError) as caught:
        parse(merged([first, second]))

    assert problem_lines(caught.value, [first, second]) == [
        "/srv/2.yml:3: b.skript: there is no such field; did you mean script?"
    ]
    with pytest.raises(CommandError, match=r"/srv/3.yml:1: /srv/1.yml has a pipeline 'a', too"):
        merged([first, read("/srv/3.yml", text="pipelines: {a: {script: x}}")])
    with pytest.raises(CommandError, match="different versions: apply them one by one"):
        merged([first, read("/srv/4.yml", text="version: pipelines/v0.1\nscript: x\n")])


def test_each_argument_of_a_pipeline_is_a_field():
    """Each argument of `create_pipeline` is a field, except `paused`."""
    missing = set(FIELDS) - set(Entry.model_fields) - {"name", "paused"}

    assert missing == set()


def test_the_schema_describes_each_field():
    """Editors show the description of a field, and refuse unknown ones."""
    schema = json.loads(json.dumps(json_schema()))
    definitions = schema["$defs"]

    assert {"RetriesEntry", "Entry", "PipelinesFile", "PipelineMLFile"} <= set(definitions)
    for one in definitions.values():
        assert one["additionalProperties"] is False
        assert [name for name, field in one["properties"].items() if not field["description"]] == []


def test_missing_yaml_library_is_reported_with_the_remedy(monkeypatch):
    """The extra `cli` brings it."""
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(CommandError, match=r"pip install ruamel\.yaml"):
        read("p.yml", text="pipelines: {}")
