"""Real supervisors, real commands: what the exit record and the spool say of each."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from jobcore import JobManager
from jobcore.embedding.locks import GATE
from jobcore.engine import peer
from jobcore.engine.launcher import ProcessLauncher
from jobcore.engine.supervisor_pool import SupervisorPool
from jobcore.errors import SpawnError
from jobcore.supervisor import frames, job_directory, process_tree, spawn
from jobcore.supervisor.messages import ENDED, OUTPUT
from tests import programs
from tests.integration.supervision_harness import Host, is_alive, processes_of
from tests.processes import PATIENCE, in_child, open_gate, state, stop, until

pytestmark = pytest.mark.cold_supervisors


def open_descriptors():
    return sorted(os.listdir("/proc/self/fd"), key=int)


# --- how a command ends ---


@pytest.mark.parametrize(
    ("argv", "code"),
    [(programs.EXIT_0, 0), (programs.EXIT_3, 3), (programs.EXIT_255, 255)],
)
def test_exit_code_is_the_kernels(host, argv, code):
    """The wait status of a command that ends by itself is recorded as the kernel gave it."""
    run = host.run(argv)

    assert (run.exit.reason, run.exit.wait_status) == ("exited", code << 8)
    assert run.exit.duration_ns == run.exit.ended_ns - run.exit.spawned_ns >= 0
    assert run.exit.cpu_us > 0
    assert run.exit.max_rss > 0


def test_stray_signals_do_not_end_a_supervisor(database, tmp_path):
    """Signals to all programs of a name or of a terminal: the job has its true end."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    with JobManager(database, slots=1) as jobs:
        job = jobs.submit(["sh", "-c", f"echo begun; read line < {gate}; exit 3"])
        next(jobs.follow(job.id))
        directory = os.open(f"{database}.jobs/{job.id.hex}", os.O_RDONLY)
        supervisor = job_directory.read_record(directory, job_directory.RUN)["supervisor"]
        os.close(directory)
        for number in spawn.IGNORED:
            os.kill(supervisor, number)
        open_gate(gate)
        ended = jobs.wait(job.id, PATIENCE)

    assert (ended.exit_code, ended.reason) == (3, "exited")


def test_time_and_memory_are_those_of_all_processes(host):
    """The command's figures are kept although a small leftover process ends later."""
    script = "sleep 0.3 & exec \"$0\" -I -S -c 'x = bytearray(64_000_000); sum(range(3_000_000))'"
    run = host.run(["sh", "-c", script, sys.executable], linger=30.0)

    assert (run.exit.reason, run.exit.wait_status) == ("exited", 0)
    assert run.exit.max_rss > 64_000_000
    assert run.exit.cpu_us > 10_000


def test_signal_death(host):
    """A command killed by a signal nobody here sent is `signaled`, not 128 and something."""
    run = host.run(programs.KILLS_ITSELF)

    assert (run.exit.reason, run.exit.wait_status) == ("signaled", signal.SIGKILL)


def test_sigterm_to_the_command_is_not_a_shutdown(host):
    """A command that dies of SIGTERM while the supervisor got none is `signaled`."""
    run = host.run(programs.TERMINATES_ITSELF)

    assert (run.exit.reason, run.exit.wait_status) == ("signaled", signal.SIGTERM)


def test_notices_report_output_and_end(host):
    """A run that goes on after its output reports that, and then its end, with its token."""
    run = host.start(["sh", "-c", "echo hello; exec sleep 60"])
    host.wait_for(run.supervisor, lambda: run.notices)
    run.stop(grace=5)
    host.finish(run)

    assert [notice.kind for notice in run.notices] == [OUTPUT, ENDED]
    assert run.supervisor.token is None
    assert run.supervisor.ready


# --- what cannot start ---


def test_not_found(host):
    """A program that is not in PATH ends 127, and the log has its name."""
    run = host.run(["nope-no-such-program"])

    assert (run.exit.reason, run.exit.wait_status) == ("spawn_failed", 127 << 8)
    assert (run.exit.errno, run.exit.stage) == (errno.ENOENT, "exec")
    assert run.system == "cannot start 'nope-no-such-program': program not found (ENOENT)\n"
    assert [notice.kind for notice in run.notices] == [ENDED]


@pytest.mark.parametrize(
    ("name", "code", "number"),
    [
        ("x" * 255, 127, errno.ENOENT),
        ("x" * 256, 126, errno.ENAMETOOLONG),
        ("x" * 5000, 126, errno.ENAMETOOLONG),
        ("./" + "x" * 5000, 126, errno.ENAMETOOLONG),
    ],
    ids=["255", "256", "5000", "path"],
)
def test_name_that_no_file_can_have_is_not_missing(host, name, code, number):
    """It fails as with `execvp`, with or without a search through PATH."""
    run = host.run([name])

    assert (run.exit.wait_status, run.exit.errno) == (code << 8, number)
    assert f"({errno.errorcode[number]})" in run.system


def test_path_entry_that_answers_with_an_error_is_reported(tmp_path, monkeypatch):
    """The program may be there, so it is not missing. One in a later entry runs anyway."""
    real = os.stat

    def fail(path, **options):
        if os.fsencode(path).startswith(b"/broken"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, **options)

    (tmp_path / "tool").touch(0o600)
    monkeypatch.setattr(os, "stat", fail)
    command = {"argv": [b"tool"], "env": {b"PATH": b"/broken:/no/such:/broken"}}
    only = spawn._exec(SimpleNamespace(**command))
    command["env"] = {b"PATH": b"/broken:" + os.fsencode(tmp_path)}
    other = spawn._exec(SimpleNamespace(**command))

    assert (only, other) == ((spawn.EXEC, errno.EIO), (spawn.EXEC, errno.EACCES))


@pytest.mark.parametrize(
    ("content", "mode", "failure", "words"),
    [
        (b"#!/bin/sh\n", 0o600, (errno.EACCES, "exec"), "not executable"),
        (b"#!/no/such/program\n", 0o700, (errno.ENOENT, "interpreter"), "interpreter"),
        (b"neither code nor a script", 0o700, (errno.ENOEXEC, "exec"), "not a program"),
    ],
)
def test_not_runnable(host, tmp_path, content, mode, failure, words):
    """A file that is there and cannot be run ends 126, with the reason in the log."""
    program = tmp_path / "program"
    program.write_bytes(content)
    program.chmod(mode)

    run = host.run([str(program)])

    assert (run.exit.reason, run.exit.wait_status) == ("spawn_failed", 126 << 8)
    assert (run.exit.errno, run.exit.stage) == failure
    assert words in run.system


def test_bad_cwd(host):
    """A missing directory and a missing program have different errors."""
    run = host.run(programs.EXIT_0, cwd=b"/no/such/directory")

    assert (run.exit.reason, run.exit.wait_status) == ("spawn_failed", 126 << 8)
    assert (run.exit.errno, run.exit.stage) == (errno.ENOENT, "chdir")
    assert "'/no/such/directory'" in run.system


def test_bad_stdin_file(host):
    """A file for standard input that is not there ends 126."""
    run = host.run(programs.EXIT_0, stdin=("file", b"/no/such/file"))

    assert (run.exit.wait_status, run.exit.stage) == (126 << 8, "stdin")


def test_arguments_too_long(host):
    """Arguments that the kernel refuses end 126 with E2BIG."""
    run = host.run(["true", "x" * 3_000_000])

    assert (run.exit.wait_status, run.exit.errno) == (126 << 8, errno.E2BIG)
    assert "too long" in run.system


def test_path_of_the_commands_own_environment(host, tmp_path):
    """The program is looked up in the final PATH, where files that cannot be run are skipped."""
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, mode in ((first, 0o600), (second, 0o700)):
        directory.mkdir()
        (directory / "tool").write_bytes(b"#!/bin/sh\nexit 9\n")
        (directory / "tool").chmod(mode)

    run = host.run(["tool"], env={"PATH": f"{first}:{second}"})
    relative = host.run(["tool"], env={"PATH": "second"}, cwd=os.fsencode(tmp_path))

    assert run.exit.wait_status == relative.exit.wait_status == 9 << 8


@pytest.mark.parametrize("entry", ["no/such", "file", "loop", "directory", "x" * 5000])
def test_missing_program_with_an_unusual_path_entry_is_127(host, tmp_path, entry):
    """A PATH entry without the program does not change its exit code, whatever the entry is."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "directory" / "no-such-program").mkdir(parents=True)

    run = host.run(["no-such-program"], env={"PATH": f"{tmp_path / entry}:/usr/bin"})

    assert (run.exit.wait_status, run.exit.errno) == (127 << 8, errno.ENOENT)


def test_missing_program_beside_an_unreadable_path_entry_is_127(tmp_path):
    """A directory that may not be searched has no programs; a path into it is refused."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "tool").write_bytes(b"#!/bin/sh\n")
    (closed / "tool").chmod(0o755)
    closed.chmod(0)

    searched = in_child(status_as_another_user, "tool", f"{closed}:/usr/bin")
    named = in_child(status_as_another_user, str(closed / "tool"), "/usr/bin")
    closed.chmod(0o700)

    assert (searched, named) == (127 << 8, 126 << 8)


def status_as_another_user(program, path):
    """Return the wait status of a command; root, who may search any directory, is nobody."""
    if os.geteuid() == 0:
        os.setuid(65534)
    command = spawn.Program(
        [os.fsencode(program)], {b"PATH": path.encode()}, b"/", None, 0o022, separate_streams=False
    )
    return os.waitpid(spawn.spawn(command).pid, 0)[1]


def test_fork_fails(host):
    """A supervisor that cannot fork reports so, without an exit code."""
    supervisor = host.supervisor()
    if os.geteuid() == 0:
        # Root may have any number of processes; descriptors are counted for everybody.
        # It may open the six of the job, and no pipe.
        own = {int(name) for name in os.listdir(f"/proc/{supervisor.pid}/fd")}
        free = [number for number in range(100) if number not in own]
        resource.prlimit(supervisor.pid, resource.RLIMIT_NOFILE, (free[6], 4096))
    else:
        resource.prlimit(supervisor.pid, resource.RLIMIT_NPROC, (1, 1))

    run = host.run(programs.EXIT_0, supervisor)

    assert (run.exit.reason, run.exit.wait_status) == ("spawn_failed", None)
    assert run.exit.stage in ("pipe", "fork")


# --- a clean state ---


def test_command_begins_clean(host):
    """A command has three descriptors, default signals, its own umask and process group."""
    run = host.run(programs.TELLS_ITS_STATE, cwd=b"/usr", umask=0o027)

    assert run.output().decode().splitlines() == [
        "descriptors 0 1 2 8",
        "Umask: 0027",
        "SigBlk: 0000000000000000",
        # What CPython itself ignores at its start: SIGPIPE and SIGXFSZ.
        "SigIgn: 0000000001001000",
        "stdin /dev/null",
        "cwd /usr",
        "session False group True",
    ]


def test_no_signal_is_ignored(host):
    """A program that ignores nothing itself finds nothing ignored, blocked or caught."""
    run = host.run(["cat", "/proc/self/status"])

    lines = [line.split() for line in run.output().splitlines() if line.startswith(b"Sig")]
    assert {words[0]: words[1] for words in lines if words[0] != b"SigQ:"} == {
        b"SigPnd:": b"0" * 16,
        b"SigBlk:": b"0" * 16,
        b"SigIgn:": b"0" * 16,
        b"SigCgt:": b"0" * 16,
    }


def test_a_command_has_no_terminal(host):
    """No stream is a terminal, and none can be opened, so a command cannot ask questions."""
    script = (
        "tty; for n in 0 1 2; do test -t $n && echo terminal $n; done; "
        "(: < /dev/tty) 2> /dev/null || echo none"
    )
    run = host.run(["sh", "-c", script])

    assert run.output() == b"not a tty\nnone\n"


def test_a_terminal_that_is_given_is_not_its_own(host):
    """A command can read from a terminal that cannot send it signals."""
    ours, theirs = os.openpty()
    script = "tty; (: < /dev/tty) 2> /dev/null || echo none"
    try:
        name = os.ttyname(theirs)
        run = host.run(["sh", "-c", script], stdin=("file", os.fsencode(name)))
    finally:
        os.close(ours)
        os.close(theirs)

    assert run.output() == f"{name}\nnone\n".encode()


def test_a_terminal_that_is_opened_does_not_become_its_own(host):
    """A command that opens a terminal gets no controlling one: its end does not end the command."""
    ours, theirs = os.openpty()
    script = ': < "$0"; exec 3< "$0"; (: < /dev/tty) 2> /dev/null || echo none; ps -o tty= -p $$'
    try:
        run = host.run(["sh", "-c", script, os.ttyname(theirs)])
    finally:
        os.close(ours)
        os.close(theirs)

    assert run.output() == b"none\n?\n"


def test_a_commands_memory_score_is_its_hosts(host):
    """A supervisor that makes itself a less likely victim does not hand that on."""
    with open("/proc/self/oom_score_adj", "rb") as file:
        own = file.read()
    run = host.run(["sh", "-c", "cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj"])

    command, supervisor = run.output().splitlines(keepends=True)
    assert command == own
    # Without the privilege it stays what it was, which is no reason not to work.
    assert supervisor in (own, b"-500\n")


def test_a_memory_score_is_set_back():
    """What a command's score is to be set back to, it has when it starts."""
    assert in_child(spawn_with_score, b"300") == b"300\n"


def spawn_with_score(score):
    """Return the score that a command finds; any process may raise its own."""
    env = {b"PATH": os.fsencode(os.environ["PATH"])}
    command = spawn.Program(
        [b"cat", b"/proc/self/oom_score_adj"], env, b"/", None, 0o022, separate_streams=False
    )
    child = spawn.spawn(command, oom_score=score)
    ((output, _),) = child.outputs
    os.waitpid(child.pid, 0)
    return os.read(output, 100)


def test_a_command_whose_supervisor_is_gone_already_does_not_run(monkeypatch):
    """One that died before the kernel could be told to end the command with it left an orphan."""
    assert in_child(spawn_as_an_orphan, monkeypatch) == (126 << 8, b"")


def spawn_as_an_orphan(monkeypatch):
    """Return the wait status of a command that finds another parent, and what it said."""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    env = {b"PATH": os.fsencode(os.environ["PATH"])}
    command = spawn.Program([b"echo", b"ran"], env, b"/", None, 0o022, separate_streams=False)
    child = spawn.spawn(command)
    ((output, _),) = child.outputs
    _, status = os.waitpid(child.pid, 0)
    return status, os.read(output, 100)


def test_stdin_data(host):
    """Data for standard input is read to its end, however long it is."""
    data = os.urandom(300_000)

    run = host.run(["sha256sum"], stdin=("data", data))

    assert run.output().split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_stdin_file(host, tmp_path):
    """A file for standard input is looked for in the command's directory."""
    (tmp_path / "input").write_text("from a file\n")

    run = host.run(["cat"], stdin=("file", b"input"), cwd=os.fsencode(tmp_path))

    assert run.output() == b"from a file\n"


def test_stdin_that_blocks_can_be_stopped(host, tmp_path):
    """A FIFO without a writer as standard input holds up the command, not its supervisor."""
    os.mkfifo(tmp_path / "fifo")
    run = host.start(["cat"], stdin=("file", os.fsencode(tmp_path / "fifo")))
    until(lambda: run.started)

    run.stop(0.5)

    assert host.finish(run).reason == "stopped"


# --- stop, time-out, shutdown ---


def test_stop(host):
    """A stop ends the command with SIGTERM, and the log says who asked."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()

    run.stop(30, who="somebody", why="for a reason")
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", signal.SIGTERM)
    assert run.system == "stopping: asked by somebody: for a reason\n"


def test_stop_keeps_the_commands_own_code(host):
    """A command that answers SIGTERM with exit 0 was stopped, with code 0."""
    run = host.start(programs.EXITS_0_ON_SIGTERM)
    run.wait_for_output()

    run.stop(30)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", 0)


def test_end_before_the_stop_is_seen_is_not_a_stop(host, tmp_path):
    """Where both are there when the supervisor looks, the command has ended by itself."""
    go = tmp_path / "go"
    run = host.start(programs.WAITS_FOR_A_FILE, env={"GO": str(go)})
    run.wait_for_output()
    command = host.wait_for_start(run)
    (supervisor,) = host.pids
    stop(supervisor)
    go.touch()
    until(lambda: state(command) == "Z", "the end of the command")
    run.stop(30)
    os.kill(supervisor, signal.SIGCONT)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("exited", 6 << 8)


def test_a_stop_is_heard_by_whoever_has_left_the_group(host):
    """SIGTERM comes to all of a tree before its grace, and only once to those of the group."""
    run = host.start(programs.TREE_THAT_HEARS_SIGTERM)
    run.wait_for_output()

    run.stop(1000)
    exit_ = host.finish(run)

    heard = dict(line.split(b" heard ") for line in run.output().splitlines()[1:])
    assert (exit_.reason, exit_.wait_status) == ("stopped", signal.SIGTERM)
    assert sorted(heard) == [b"both", b"group", b"session"]
    assert heard[b"group"] == b"once"  # many take a second one for impatience
    assert "killed" not in run.system


def test_stop_leaves_no_survivor(host):
    """After a stop nothing is alive of a tree that ignores SIGTERM, and grace was a minimum."""
    run = host.start(programs.TREE_THAT_IGNORES_SIGTERM)
    run.wait_for_output()
    # Two others only fork, and may still be about to end.
    until(lambda: len(processes_of(run.token)) == 5, "the five that sleep, and no others")

    begun = time.monotonic()
    run.stop(0.5)
    exit_ = host.finish(run)

    assert time.monotonic() - begun >= 0.5
    assert processes_of(run.token) == []
    assert (exit_.reason, exit_.wait_status) == ("stopped", signal.SIGKILL)
    assert exit_.unreaped == ()
    assert "after SIGTERM: killed" in run.system


def test_stop_of_the_main_process_spares_its_children(host):
    """With the scope `main` only the command gets SIGTERM; its child finishes, and it does, too."""
    run = host.start(programs.FINISHES_WITH_ITS_CHILD)
    run.wait_for_output()

    run.stop(1000)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", 0)
    assert run.output() == b"ready\nchild finished\nsaved\n"
    assert run.system.count("\n") == 1


def test_stop_of_the_group_comes_to_children_at_once(host):
    """With the scope `group` a child gets SIGTERM with its parent."""
    run = host.start(programs.FINISHES_WITH_ITS_CHILD, stop_group=True)
    run.wait_for_output()

    run.stop(1000)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", 1 << 8)
    assert run.output() == b"ready\nchild lost\n"


@pytest.mark.parametrize("group", [False, True])
def test_stop_signal_is_sent_first(host, group):
    """A program that saves on KeyboardInterrupt has saved, and gets no other signal."""
    run = host.start(programs.SAVES_ON_INTERRUPT, stop_signal=int(signal.SIGINT), stop_group=group)
    run.wait_for_output()

    run.stop(1000)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", 0)
    assert run.output() == b"ready\nsaved\n"


def test_time_out_sends_the_stop_signal(host):
    """It takes the same way as a stop."""
    run = host.run(programs.SAVES_ON_INTERRUPT, stop_signal=int(signal.SIGINT), timeout=2)

    assert (run.exit.reason, run.exit.wait_status) == ("timeout", 0)
    assert run.output().endswith(b"saved\n")


def test_child_of_a_wrapper_that_forwards_no_signal_is_ended(host):
    """A shell that dies of SIGTERM leaves its child to us: it gets SIGTERM once, and its grace."""
    child = "trap 'echo cleaned; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    run = host.start(["sh", "-c", f'sh -c "{child}"; echo never'])
    run.wait_for_output()

    run.stop(1000)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", signal.SIGTERM)
    assert run.output() == b"ready\ncleaned\n"
    assert exit_.left == 0


def test_child_of_a_trapping_shell_gets_sigterm_before_the_grace_ends(host):
    """A shell with a trap waits for its child, which is ended before the grace is over."""
    # The child says that it is there: without one, the shell would run its trap at once.
    child = "echo ready; exec sleep 300"
    script = f"trap 'echo cleaned; exit 3' TERM; sh -c '{child}'; echo never"
    run = host.start(["bash", "-c", script], linger=1000.0)
    run.wait_for_output()

    run.stop(4)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", 3 << 8)
    assert run.output().endswith(b"cleaned\n")
    assert re.search(
        r"still alive 2.0 s after SIGTERM: SIGTERM to \d+ \(sleep\), too\n", run.system
    )


def test_command_that_outlasts_its_signal_is_killed_by_name(host):
    """A handler of SIGINT that takes longer than the grace is killed with all it has started."""
    run = host.start(programs.TAKES_TOO_LONG_ON_INTERRUPT, stop_signal=int(signal.SIGINT))
    run.wait_for_output()

    run.stop(0.4)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("stopped", signal.SIGKILL)
    assert re.search(r"still alive 0.\d s after SIGINT: killed: \d+ \(python", run.system)


def test_children_are_found_where_the_kernel_does_not_list_them(tmp_path):
    """They are those whose parent we are, whatever a process calls itself."""
    script = tmp_path / "a) S 1 (b"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o700)
    with subprocess.Popen([script], stdin=subprocess.PIPE) as child:
        until(lambda: name_of(child.pid) == script.name, "its name")
        found = process_tree.by_parent()[os.getpid()]
        called = process_tree.read_stat(child.pid)
        listed = process_tree.children()

    assert child.pid in listed
    assert set(listed) <= set(found)  # which has those of other threads, too
    assert called == (script.name, os.getpid())


def name_of(pid):
    """Return what the kernel calls a process."""
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().removesuffix("\n")


def test_processes_that_fork_for_ever_end(host):
    """A chain of processes, each in its own session, is killed in the end."""
    run = host.start(programs.FORKS_FOR_EVER, linger=30.0)
    run.wait_for_output()

    run.stop(0.1)
    exit_ = host.finish(run)

    assert processes_of(run.token) == []
    assert exit_.unreaped == ()
    assert exit_.wait_status == 0


def take_descriptors(pid):
    """Leave a supervisor with a job no descriptor to open; return what gives them back."""
    opened = {
        int(name): os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")
    }
    # It keeps the spool and those that it opened before. It closes others with the command's end.
    (spool,) = (number for number, path in opened.items() if "/spool." in path)
    assert opened.keys() >= set(range(spool))
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (spool, before[1]))
    return lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


STRAY = "setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 100' & "


@pytest.mark.parametrize("how", ["stop", "time-out", "linger"])
def test_no_descriptor_postpones_the_end_and_does_not_invent_it(host, tmp_path, how):
    """The group ends in time, and a process that cannot be listed is not declared unkillable."""
    supervisor = host.supervisor()
    rest = "until [ -e $0/go ]; do sleep 0.01; done" if how == "linger" else "exec sleep 100"
    run = host.start(
        ["sh", "-c", STRAY + rest, str(tmp_path)],
        supervisor,
        timeout=1.0 if how == "time-out" else None,
        grace=0.2,
        linger=0.3,
    )
    run.wait_for_output(b"\n")
    main, stray = host.wait_for_start(run), int(run.output())
    give_back = take_descriptors(supervisor.pid)
    if how == "stop":
        run.stop(0.2)
    (tmp_path / "go").touch()

    until(lambda: not is_alive(main), "the end of the command")
    until(lambda: "killed" in run.system, "the first SIGKILL")
    assert is_alive(stray)
    assert run.exit is None
    give_back()
    host.finish(run)

    assert not is_alive(stray)
    assert run.exit.unreaped == ()
    assert run.exit.reason == {"stop": "stopped", "time-out": "timeout", "linger": "exited"}[how]
    assert "could not be killed" not in run.system


def test_stop_of_a_stopped_command(host):
    """SIGCONT follows SIGTERM: a command that is stopped ends before its grace."""
    run = host.start(programs.STOPS_ITSELF)
    run.wait_for_output()

    run.stop(1000)

    assert host.finish(run).reason == "stopped"


def test_second_stop_shortens_the_grace(host):
    """A later request can only bring the end nearer; the reason stays that of the first."""
    run = host.start(programs.TREE_THAT_IGNORES_SIGTERM)
    run.wait_for_output()
    run.stop(1000, who="first")
    until(lambda: "first" in run.system)

    run.stop(0, who="second")

    assert host.finish(run).reason == "stopped"
    assert "second" not in run.system


def test_second_stop_does_not_lengthen_the_grace(host):
    """A later request with more grace changes nothing: the first one's grace still ends it."""
    run = host.start(programs.TREE_THAT_IGNORES_SIGTERM)
    run.wait_for_output()
    run.stop(0.5, who="first")
    until(lambda: "first" in run.system)

    run.stop(1000, who="second")

    assert host.finish(run).reason == "stopped"


@pytest.mark.parametrize(("byte", "status"), [(b"s", signal.SIGTERM), (b"k", None)])
def test_stop_works_without_a_file(host, byte, status):
    """`s` and `k` stop a job without any file, for when none can be written."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()

    job_directory.send_control(run.directory, byte)
    exit_ = host.finish(run)

    assert exit_.reason == "stopped"
    assert exit_.wait_status in (status or signal.SIGTERM, status or signal.SIGKILL)


def test_stop_before_the_start(host):
    """A stop that is there when the request comes is obeyed before anything runs."""
    supervisor = host.supervisor()
    run = host.prepare(programs.EXIT_0)
    run.supervisor = supervisor
    run.stop(10)
    run.send(supervisor)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status, exit_.spawned_ns) == ("stopped", None, None)
    assert not run.started
    assert supervisor.ready


def test_time_out(host):
    """A time-out takes the same way as a stop, and is never early."""
    begun = time.monotonic()
    run = host.run(programs.SLEEPS, timeout=0.3)

    assert time.monotonic() - begun >= 0.3
    assert (run.exit.reason, run.exit.wait_status) == ("timeout", signal.SIGTERM)
    assert run.system == "time-out after 0.3 s\n"


def test_sigterm_to_the_supervisor_is_a_shutdown(host):
    """A supervisor that gets SIGTERM ends its job as `shutdown`, and leaves."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()

    os.kill(run.supervisor.pid, signal.SIGTERM)
    exit_ = host.finish(run)
    host.wait_for(run.supervisor, lambda: False)

    assert (exit_.reason, exit_.wait_status) == ("shutdown", signal.SIGTERM)
    assert run.supervisor.gone


def test_sigterm_to_all_is_a_shutdown(host):
    """A command that dies of the SIGTERM that its supervisor gets too was shut down."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()
    command = host.wait_for_start(run)

    os.kill(command, signal.SIGTERM)
    os.kill(run.supervisor.pid, signal.SIGTERM)

    assert host.finish(run).reason == "shutdown"


def test_idle_supervisor_leaves_on_sigterm(host):
    """An idle supervisor ends on SIGTERM, and the host learns that a request did not arrive."""
    supervisor = host.supervisor()
    os.kill(supervisor.pid, signal.SIGTERM)
    host.wait_for(supervisor, lambda: False)
    run = host.prepare(programs.EXIT_0)

    assert run.send(supervisor) == "gone"
    assert not run.locked


def test_queued_request_of_a_leaving_supervisor_is_answered(host):
    """A request queued when SIGTERM comes gets an exit record that says so."""
    supervisor = host.supervisor()
    stop(supervisor.pid)
    run = host.prepare(programs.EXIT_0)
    run.supervisor = supervisor
    assert run.send(supervisor) == "sent"
    os.kill(supervisor.pid, signal.SIGTERM)
    os.kill(supervisor.pid, signal.SIGCONT)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("shutdown", None)
    assert not run.started


# --- what a command leaves behind ---


def test_leftovers_end_with_sigterm(host):
    """Processes that outlive the command get SIGTERM and are named; the code is the command's."""
    run = host.run(programs.LEAVES_A_SLEEPER, linger=1000.0)

    assert (run.exit.reason, run.exit.wait_status, run.exit.left) == ("exited", 4 << 8, 1)
    assert processes_of(run.token) == []
    assert re.fullmatch(r"the command exited with 4 and left \d+ \(sleep\): SIGTERM\n", run.system)
    assert run.supervisor.ready


def test_leftovers_are_killed_after_the_linger(host):
    """Processes that survive SIGTERM are killed after the linger, and the log names each."""
    begun = time.monotonic()
    run = host.run(programs.LEAVES_TWO_THAT_IGNORE_SIGTERM, linger=0.5)

    assert time.monotonic() - begun >= 0.5
    assert (run.exit.reason, run.exit.wait_status, run.exit.left) == ("exited", 4 << 8, 2)
    assert processes_of(run.token) == []
    left, killed = run.system.splitlines()
    names = r"(\d+) \(sleep\), (\d+) \(sleep\)"
    asked = re.fullmatch(f"the command exited with 4 and left {names}: SIGTERM", left)
    ended = re.fullmatch(f"still alive 0.5 s after SIGTERM: killed: {names}", killed)
    assert sorted(ended.groups()) == sorted(asked.groups())
    assert not run.supervisor.ready


def test_every_process_that_is_killed_is_named(host):
    """However many there are; a line has a hundred of them."""
    run = host.run(programs.LEAVES_150_THAT_IGNORE_SIGTERM, linger=0.2)

    asked = [line for line in run.system.splitlines() if line.endswith(": SIGTERM")]
    killed = run.system.splitlines()[len(asked) :]
    names = re.compile(r"\d+ \(python")
    assert [len(names.findall(line)) for line in asked] == [100, 50]
    assert [len(names.findall(line)) for line in killed] == [100, 50]
    assert run.exit.left == 150
    assert processes_of(run.token) == []


def test_process_ending_just_after_the_command_is_not_left(host):
    """A reader of the command's output, such as a `tee`, ends by itself, and loses nothing."""
    script = "exec > >(while read -r line; do echo $line; done; sleep 0.1; echo end); seq 1 2000"
    run = host.run(["bash", "-c", script])

    assert run.output().splitlines()[-2:] == [b"2000", b"end"]
    assert (run.exit.left, run.system) == (0, "")


def test_time_out_of_leftovers_is_logged_as_one(host):
    """Where a time-out ends what a command that exited with 0 has left, the log says so."""
    # Leftovers get one second to end by themselves. The time-out comes before that.
    run = host.run(programs.LEAVES_A_SLEEPER_AND_EXITS_0, timeout=0.9, linger=1000.0)

    assert (run.exit.reason, run.exit.wait_status, run.exit.left) == ("exited", 0, 1)
    assert re.fullmatch(
        r"time-out after 0.9 s: the command exited with 0 and left \d+ \(sleep\): SIGTERM\n",
        run.system,
    )


def test_time_out_during_the_linger_is_logged_as_one(host):
    """A time-out shortens a linger, and says that the command had exited before."""
    script = "trap '' TERM; sh -c 'sleep 300; sleep 300' & exit 0"
    run = host.run(["sh", "-c", script], timeout=2, linger=1000.0, grace=0.1)

    assert (run.exit.reason, run.exit.wait_status) == ("exited", 0)
    assert run.system.splitlines()[1] == (
        "time-out after 2 s: the command exited with 0 before, and what it left ends now"
    )


def test_late_output_is_kept(host):
    """Output of a grandchild within the linger is in the log."""
    run = host.run(programs.LEAVES_A_LATE_SPEAKER, linger=30.0)

    assert run.exit.wait_status == 5 << 8
    assert run.output() == b"late\n"
    assert run.supervisor.ready


def test_stop_shortens_the_linger(host):
    """A stop during the linger ends it, and changes neither reason nor code."""
    run = host.start(programs.LEAVES_A_SLEEPER, linger=1000.0)
    command = host.wait_for_start(run)
    until(lambda: not os.path.exists(f"/proc/{command}"), "the command to be reaped")

    run.stop(0)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("exited", 4 << 8)
    assert processes_of(run.token) == []


def test_closed_output_is_not_the_end(host):
    """A command that closes its output runs on, to its own exit code."""
    run = host.run(programs.CLOSES_ITS_OUTPUT)

    assert run.exit.wait_status == 7 << 8
    assert run.output() == b"before\n"


# --- output ---


def test_order_of_one_pipe(host):
    """Lines to stdout and stderr come in the order of their writes, numbered from 0."""
    script = "for i in $(seq 500); do echo $i; echo $i >&2; done"
    run = host.run(["sh", "-c", script])

    expected = b"".join(b"%d\n%d\n" % (i, i) for i in range(1, 501))
    assert run.output() == expected
    firsts = [frame.first for frame, _ in run.frames]
    counts = [frame.count for frame, _ in run.frames]
    assert firsts == [sum(counts[:i]) for i in range(len(counts))]
    assert run.exit.next_sequence == 1000
    assert run.exit.spool_end == job_directory.spool_end(run.directory)


def test_separate_streams(host):
    """With separate streams, each line has its stream."""
    run = host.run(programs.SAYS_HELLO, separate_streams=True)

    assert run.output(frames.STDOUT) == b"hello\n"
    assert run.output(frames.STDERR) == b"world\n"


def test_line_of_a_mebibyte(host):
    """A line longer than a frame comes back byte for byte, in pieces marked as such."""
    run = host.run(programs.python("print('\\u20ac' * 350_000)"), env={"PYTHONUTF8": "1"})

    flags = [frame.flags for frame, _ in run.frames]
    assert run.output().decode() == "\u20ac" * 350_000 + "\n"
    assert all(flag & frames.PARTIAL for flag in flags[:-1])
    assert not flags[-1] & frames.PARTIAL
    for _, lines in run.frames:
        lines[0].decode()


def test_no_newline_at_the_end(host):
    """The last line is there, marked as without a newline."""
    run = host.run(["printf", "one\ntwo"])

    assert run.output() == b"one\ntwo"
    assert run.frames[-1][0].flags == frames.OPEN_END


def test_output_limit(host):
    """Beyond the limit lines are dropped whole and counted, and one line says so."""
    run = host.run(["seq", "1000"], output_limit=100)

    assert run.output() == b"".join(b"%d\n" % i for i in range(1, 37))
    assert run.exit.dropped == 1000 - 36
    assert run.system.count("\n") == 1
    assert "output limit of 100 bytes" in run.system


def test_redacted_values_reach_no_file(host):
    """A secret is masked in output and in jobcore's own lines, before it is on disk."""
    run = host.run(["sh", "-c", "printf abc; sleep 0.05; echo defg"], redact=[b"cdef"])
    failed = host.run(["no-cdef"], redact=[b"cdef"])

    assert run.output() == b"ab***g\n"
    assert "'no-***'" in failed.system
    for each in (run, failed):
        assert b"cdef" not in job_directory.read_spool(each.directory, 0, 1 << 20)


def test_spool_rotates(host):
    """A long output is in several files, each named by the offset of its first byte."""
    run = host.run(["head", "-c", "20000000", "/dev/zero"])

    assert len(job_directory.spool_offsets(run.directory)) == 3
    assert run.output() == bytes(20_000_000)


def test_full_disk_holds_the_command(host, tmp_path):
    """Without space for output the command is held, and nothing is lost when it comes back."""
    go = tmp_path / "go"
    script = 'echo ready; while [ ! -e "$GO" ]; do sleep 0.01; done; seq 30000; echo end'
    run = host.start(["sh", "-c", script], env={"GO": str(go)})
    run.wait_for_output()
    # The size limit is the one shortage that can be made for one process alone.
    resource.prlimit(run.supervisor.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    go.touch()
    until(lambda: job_directory.spool_end(run.directory) == 1000)
    assert run.exit is None

    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(run.supervisor.pid, resource.RLIMIT_FSIZE, limit)
    exit_ = host.finish(run)

    assert (exit_.reason, exit_.wait_status) == ("exited", 0)
    assert run.output() == b"ready\n" + b"".join(b"%d\n" % i for i in range(1, 30001)) + b"end\n"


def test_full_disk_does_not_hold_a_stop(host, tmp_path):
    """A held command can be stopped; its end is written when there is space."""
    go = tmp_path / "go"
    script = 'echo ready; while [ ! -e "$GO" ]; do sleep 0.01; done; trap "" TERM; exec yes'
    run = host.start(["sh", "-c", script], env={"GO": str(go)})
    run.wait_for_output()
    resource.prlimit(run.supervisor.pid, resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    go.touch()
    until(lambda: job_directory.spool_end(run.directory) == 4000)

    run.stop(0)
    until(lambda: not processes_of(run.token))
    assert run.exit is None
    assert run.locked
    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(run.supervisor.pid, resource.RLIMIT_FSIZE, limit)

    assert host.finish(run).reason == "stopped"


def test_directory_gone(host):
    """When its directory is removed, the command goes on, and a new one gets the exit record."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()

    job_directory.remove(run.token, run.directory, parent=host.root)
    os.kill(processes_of(run.token)[0], signal.SIGTERM)
    host.wait_for(run.supervisor, lambda: any(n.kind == ENDED for n in run.notices))
    again = job_directory.open_directory(run.token, parent=host.root)
    record = job_directory.read_exit(again, run.token)
    output = job_directory.read_spool(again, 0, record.spool_end)
    os.close(again)

    assert (record.reason, record.wait_status) == ("signaled", signal.SIGTERM)
    assert b"ready\n" in output


# --- death ---


def test_supervisor_killed(host):
    """The command dies with its supervisor, and the lock is free at once."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()
    assert run.locked

    os.kill(run.supervisor.pid, signal.SIGKILL)
    host.wait_for(run.supervisor, lambda: False)
    until(lambda: not processes_of(run.token))

    assert not run.locked
    assert run.started
    assert run.exit is None


def test_queued_request_dies_with_its_supervisor(host):
    """A request that a dead supervisor never read frees the lock, and nothing has started."""
    supervisor = host.supervisor()
    stop(supervisor.pid)
    run = host.prepare(programs.EXIT_0)
    assert run.send(supervisor) == "sent"
    assert run.locked

    os.kill(supervisor.pid, signal.SIGKILL)
    host.wait_for(supervisor, lambda: False)

    until(lambda: not run.locked)
    assert not run.started
    assert run.exit is None


@pytest.mark.parametrize("sibling", [False, True])
def test_host_killed(host, tmp_path, sibling):
    """A job outlives its host, even if a forked child of the host still holds the socket."""
    go = tmp_path / "go"
    run = host.prepare(programs.WAITS_FOR_A_FILE, env={"GO": str(go)})
    reader, writer = os.pipe()
    reader_of_end, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        other = Host(tmp_path)
        supervisor = other.supervisor()
        # The descriptor of the request was closed in this child; make its own.
        mine = other.prepare(programs.WAITS_FOR_A_FILE, env={"GO": str(go)})
        mine.send(supervisor)
        brother = 0
        if sibling:
            socket = supervisor.fileno()
            GATE._descriptors.discard(socket)  # a fork by C code runs no hook
            brother = os.fork()
            if brother == 0:
                os.close(end)
                os.read(reader_of_end, 1)
                os._exit(0)
        os.write(writer, f"{mine.token} {supervisor.pid} {brother}".encode())
        time.sleep(300)
        os._exit(1)
    run.close()
    os.close(reader_of_end)
    del host.runs[run.token]
    token, supervisor, brother = os.read(reader, 1000).decode().split()
    run.token = token
    run.directory = job_directory.open_directory(token, parent=host.root)
    host.pids.add(int(supervisor))
    host.runs[token] = run
    run.wait_for_output()

    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    go.touch()
    until(lambda: run.exit)
    until(lambda: not is_alive(int(supervisor)))
    os.close(end)
    os.close(reader)
    os.close(writer)
    until(lambda: not int(brother) or not is_alive(int(brother)))

    assert (run.exit.reason, run.exit.wait_status) == ("exited", 6 << 8)
    assert run.output() == b"ready\ndone\n"
    assert not run.locked


def test_discarded_while_busy(host, tmp_path):
    """A busy supervisor that is let go finishes its job, and then leaves."""
    go = tmp_path / "go"
    run = host.start(programs.WAITS_FOR_A_FILE, env={"GO": str(go)})
    run.wait_for_output()

    host.pool.discard(run.supervisor)
    go.touch()
    until(lambda: run.exit)

    assert run.exit.wait_status == 6 << 8
    until(lambda: not is_alive(run.supervisor.pid))


# --- reuse ---


def test_reuse(host):
    """One supervisor runs fifty jobs in turn, and leaves nothing of them open."""
    supervisor = host.supervisor()
    host.run(programs.SAYS_HELLO, supervisor)
    before = os.listdir(f"/proc/{supervisor.pid}/fd")

    for code in range(50):
        run = host.run(["sh", "-c", f"echo {code}; exit {code}"], supervisor)
        assert run.exit.wait_status == code << 8
        assert run.output() == b"%d\n" % code

    assert supervisor.ready
    assert os.listdir(f"/proc/{supervisor.pid}/fd") == before


def test_supervisor_that_had_to_kill_is_replaced(host):
    """After a kill a supervisor takes no other job."""
    run = host.start(programs.TREE_THAT_IGNORES_SIGTERM)
    run.wait_for_output()
    run.stop(0)
    host.finish(run)

    assert not run.supervisor.ready
    host.wait_for(run.supervisor, lambda: False)
    assert run.supervisor.gone
    assert host.run(programs.EXIT_3).exit.wait_status == 3 << 8


def test_running_job_is_not_run_twice(host):
    """A second request for a running job is dropped, and the first one is not disturbed."""
    run = host.start(programs.SLEEPS)
    run.wait_for_output()
    second = host.prepare(programs.EXIT_3)
    intruder = host.supervisor()

    assert intruder.send(run.token, second.lock, run.directory, second.request) == "sent"
    host.wait_for(intruder, lambda: False)

    assert intruder.gone
    assert run.exit is None
    run.stop(10)
    assert host.finish(run).reason == "stopped"


def test_job_that_may_have_started_is_not_started_again(host):
    """Where a `run` record is, nothing is started, and no verdict is given."""
    run = host.prepare(programs.EXIT_0)
    job_directory.write_record(run.directory, job_directory.RUN, {"token": "0" * 32})
    supervisor = host.supervisor()

    assert run.send(supervisor) == "sent"
    host.wait_for(supervisor, lambda: False)

    assert run.exit is None
    assert not run.locked


def test_torn_request_is_not_run(host):
    """A request of another token than its message is refused, and its lock is free."""
    run = host.prepare(programs.EXIT_0)
    supervisor = host.supervisor()

    supervisor.send("f" * 32, run.lock, run.directory, run.request)
    run.let_go()
    host.wait_for(supervisor, lambda: False)

    assert not run.started
    assert not run.locked


# --- the pool ---


def test_no_interpreter():
    """Without an interpreter that can be run, starting a supervisor is a typed error."""
    before = open_descriptors()
    pool = SupervisorPool(ProcessLauncher("/no/such/python"))

    with pytest.raises(SpawnError) as caught:
        pool.spawn()

    assert caught.value.errno == errno.ENOENT
    assert pool.supervisors == []
    assert open_descriptors() == before


class Raises:
    """A launcher that starts nothing."""

    def __init__(self, error):
        self.error = error

    def start(self, descriptor):
        os.fstat(descriptor)
        raise self.error


@pytest.mark.parametrize(
    ("error", "number"),
    [(SpawnError("no", 7), 7), (OSError(errno.EMFILE, "no"), errno.EMFILE), (KeyError("no"), None)],
)
def test_launcher_that_fails(error, number):
    """Any exception of a host's launcher becomes a typed error, and leaves no descriptor open."""
    before = open_descriptors()
    pool = SupervisorPool(Raises(error))

    with pytest.raises(SpawnError) as caught:
        pool.spawn()

    assert caught.value.errno == number
    assert pool.supervisors == []
    assert open_descriptors() == before


def test_supervisor_socket_is_never_a_standard_stream():
    """A host that has closed those does not get their numbers for its sockets, either end."""
    assert min(in_child(sockets_without_standard_streams)) > 2


def sockets_without_standard_streams():
    """Return the numbers of both ends, in a process that has closed 0, 1 and 2."""
    for number in (0, 1, 2):
        os.close(number)
    return [one.fileno() for one in peer.socket_pair()]


def test_no_descriptors_left():
    """A host without free descriptors gets a typed error, and leaves none open."""
    pool = SupervisorPool()
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit in range(int(before[-1]), int(before[-1]) + 6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(SpawnError) as caught:
                pool.spawn()
            assert caught.value.errno == errno.EMFILE
    except pytest.fail.Exception:
        pass  # the limit at which it works is reached
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        pool.close()

    assert open_descriptors() == before


def test_nothing_is_left_open_or_unreaped(host):
    """Starting, using and letting go of supervisors leaves no descriptor and no zombie."""
    before, processes = open_descriptors(), process_tree.children()
    for _ in range(5):
        supervisor = host.supervisor()
        host.run(programs.EXIT_0, supervisor)
        host.pool.discard(supervisor)
    for run in list(host.runs.values()):
        run.close()
    host.runs.clear()
    host.pool.close()  # the keeper

    assert open_descriptors() == before
    assert process_tree.children() == processes  # zombies are among them; other tests may keep one


def test_sigchld_ignored(host):
    """A host that ignores SIGCHLD gets true exit codes."""
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run = host.run(programs.EXIT_3)
    finally:
        signal.signal(signal.SIGCHLD, previous)

    assert run.exit.wait_status == 3 << 8


def test_forked_child_of_the_host_has_no_supervisors(host):
    """In a forked child the pool is empty, and the parent's supervisor works on."""
    supervisor = host.supervisor()
    socket = supervisor.fileno()
    pid = os.fork()
    if pid == 0:
        closed = False
        try:
            os.fstat(socket)
        except OSError:
            closed = True
        os._exit(0 if closed and not host.pool.supervisors and supervisor.gone else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert host.run(programs.EXIT_3, supervisor).exit.wait_status == 3 << 8
