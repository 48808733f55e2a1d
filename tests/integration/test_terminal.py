"""On a terminal nothing that a job wrote, or is called, does anything; a pipe has it as it is."""

from __future__ import annotations

import json
import re

from jobcore import Command
from tests.integration.verbs_harness import in_a_pipe, on_a_terminal
from tests.processes import PATIENCE

#: What clears, colours and renames a terminal, fills its clipboard, asks it to answer, rings, goes
#: back, and turns text around: with ESC, with C1 controls, with BEL and with ST, whole and cut.
HARMFUL = (
    "a\x1b[2J\x1b[1;31m\x1b[?1049h\x1b[6n\x1b]0;title\x07\x1b]52;c;cm0gLXJm\x07"
    "\x1b]52;c;cm0gLXJm\x1b\\\x1b]52;c;cm0gLXJm\x9c\x1bPq\x1b\\\x1bc\x1b(0\x9b31m\x9d0;x\x9c"
    "\x85\x07\x08\x7f\x05\x0c\x0b\u202eb\u2066c\u2069\u202c\rd\x1b[31"
)
#: The text that is left of it, and that a terminal shows: a carriage return goes back.
TEXT = "a31m0;xbcd31"
SHOWN = "d31m0;xbc"

#: What jobcore itself sends beside text: colours, line ends, and the tabs of jobs.
_OURS = re.compile(r"\x1b\[[0-9;]*m|\r\n|\t")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def controls(shown):
    """Return the controls that a terminal got, and that are not jobcore's own."""
    return _CONTROL.findall(_OURS.sub("", shown))


def test_an_output_is_only_text_on_a_terminal(running_jobs, database):
    """Neither `run` nor `logs` passes on what a job wrote to either stream; pipes get the bytes."""
    script = 'printf "%s\\n" "$1"; printf %s "$1" >&2'
    words = ["sh", "-c", script, "sh", HARMFUL]
    job = running_jobs.submit(Command(words, separate_streams=True))
    assert running_jobs.wait(job.id, PATIENCE).exit_code == 0
    verbs = [
        ["logs", str(job.id)],
        ["logs", "-f", "--tail", "2", str(job.id)],
        ["logs", "--format", "ndjson", str(job.id)],
        ["run", "--separate-streams", "--", *words],
        ["run", "--", "/no/such/" + HARMFUL],
    ]
    *texts, objects, ran, failed = on_a_terminal(database, verbs)

    assert [controls(shown) for shown in (*texts, objects, ran, failed)] == [[]] * 5
    assert texts == [f"{SHOWN}\r\n{SHOWN}"] * 2
    assert "\x1b" not in "".join(texts) + objects + ran
    assert re.findall(SHOWN, ran) == [SHOWN] * 2
    assert [json.loads(one)["message"] for one in objects.splitlines()] == [HARMFUL] * 2
    *texts, objects, ran, _, _ = in_a_pipe(database, verbs)
    assert texts == [f"{HARMFUL}\n{HARMFUL}"] * 2
    assert [json.loads(one)["message"] for one in objects.split("\n")[:-1]] == [HARMFUL] * 2
    assert ran == f"{HARMFUL}\n"  # the rest is on stderr


def test_names_and_facts_are_only_text_on_a_terminal(jobs, database):
    """Names, data, progress and repeated arguments have no effect on a terminal, either."""
    job = jobs.create_job("TASK", name=HARMFUL, data={"key": HARMFUL})
    jobs.start_job(job.id)
    jobs.report_progress(job.id, 3, 10, HARMFUL)
    jobs.append_log(job.id, HARMFUL)
    jobs.finish_job(job.id, 1)
    job_id = str(job.id)
    verbs = [
        ["list"],
        ["show", job_id],
        ["history", job_id],
        ["wait", job_id],
        ["logs", job_id],
        ["doctor"],
        ["show", HARMFUL],
        ["logs", HARMFUL],
        ["--db", HARMFUL, "list"],
        ["--db", HARMFUL, "doctor"],
        ["list", "--type", HARMFUL],
        ["prune", "--older-than", HARMFUL],
        ["list", "--json"],
        ["show", "--json", job_id],
    ]
    shown = on_a_terminal(database, verbs)

    assert [(words, found) for words, one in zip(verbs, shown) if (found := controls(one))] == []  # noqa: B905
    assert TEXT.replace("cd", "c d") in shown[0]  # a CR in a field is a space
    assert "cm0gLXJm" not in shown[0]
    piped = in_a_pipe(database, verbs)
    for terminals, pipes in zip(shown[-2:], piped[-3:-1], strict=True):
        facts = json.loads(pipes)
        assert facts == json.loads(terminals)
        (facts,) = facts if isinstance(facts, list) else (facts,)
        assert (facts["name"], facts["data"]) == (HARMFUL, {"key": HARMFUL})
