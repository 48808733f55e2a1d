"""Mutants: slips that would break a promise, each with the tests that have to notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """
    One slip.

    Attributes:
        name: What it does wrong.
        file: Below `jobcore`.
        old: The text that is there, once.
        new: What a hurried hand would have written.
        tests: What is run against it; one of these has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CAPTURE = "tests/unit/test_capture.py"
DATABASE = "tests/unit/test_database.py"
FRAMES = "tests/unit/test_frames.py"
IMPORTER = "tests/unit/test_importer.py"
LOGS = "tests/unit/test_log_segments.py"
RECOVERY = "tests/unit/test_recovery.py"
STORE = "tests/unit/test_store.py"
JOBDIR = "tests/unit/test_job_directory.py"
RULES = "tests/unit/test_schema_rules.py"
SUPERVISOR = "tests/integration/test_supervisor.py"
CHAINS = "tests/integration/test_chains.py"
DEPENDENCIES = "tests/integration/test_dependencies.py"
ENVIRONMENTS = "tests/integration/test_environments.py"
EXPIRY = "tests/integration/test_expiry.py"
GRAPHS = "tests/faults/test_graphs_killed.py"
HOOKS = "tests/integration/test_hooks.py"
KEEPER = "tests/integration/test_keeper.py"
KEYS = "tests/integration/test_keys.py"
RETRIES = "tests/integration/test_retries.py"
STOPS = "tests/faults/test_stop_from_anywhere.py"
SUPERVISOR_KILLED = "tests/faults/test_supervisor_killed.py"
TAIL = "tests/unit/test_unfinished_line.py"
UNFINISHED = "tests/integration/test_unfinished_lines.py"
TWO_MANAGERS = "tests/faults/test_two_managers.py"
INTERRUPTS = "tests/unit/test_interrupts.py"
DISPATCHER = "tests/faults/test_dispatcher.py"
ADOPTION = "tests/faults/test_adoption.py"
LIMITS = "tests/integration/test_limits.py"
COPIES = "tests/integration/test_copies.py"
NAMESPACES = "tests/faults/test_namespaces.py"
ONE_BAD_JOB = "tests/faults/test_one_bad_job.py"
OWNED_TASKS = "tests/integration/test_owned_tasks.py"
REMOVED_FILES = "tests/integration/test_removed_files.py"
WRITER = "tests/unit/test_writer.py"
INTERRUPTED_CALLS = "tests/faults/test_interrupts.py"

MUTANTS = (
    # --- import and settle ------------------------------------------------------
    Mutant(
        "the offset moves without compare-and-set",
        "storage/transitions.py",
        '        job.c.spool_offset == bindparam("old_offset"),\n',
        '        bindparam("old_offset") == bindparam("old_offset"),\n',
        (STORE, IMPORTER),
    ),
    Mutant(
        "the offset is committed before the lines",
        "engine/importer.py",
        "            if content.slices:\n                log_segments.append_slices(",
        "            connection.exec_driver_sql('COMMIT')\n"
        "            connection.exec_driver_sql('BEGIN IMMEDIATE')\n"
        "            if content.slices:\n                log_segments.append_slices(",
        (IMPORTER, "tests/faults"),
    ),
    Mutant(
        "a claim does not look at the status",
        "storage/transitions.py",
        "        _allows(Trigger.START),\n        job.c.deleted_at.is_(None),\n",
        "        job.c.deleted_at.is_(None),\n",
        (STORE, TWO_MANAGERS),
    ),
    Mutant(
        "the directory is removed before the verdict is committed",
        "engine/importer.py",
        "        if content.exit is not None:\n            final = self._settle(",
        "        if content.exit is not None:\n            self._directories.remove(run.name)\n"
        "            final = self._settle(",
        (RECOVERY, IMPORTER),
    ),
    Mutant(
        "a verdict that could be undone by a power failure is taken for durable",
        "engine/importer.py",
        "        return self.exit is not None or self.rotated\n",
        "        return False\n",
        (IMPORTER, DATABASE),
    ),
    Mutant(
        "a hole in the numbers is closed by renumbering",
        "engine/importer.py",
        "                if frame.first != content.next_sequence:\n"
        "                    break  # valid, but not the next one: something before it is missing\n",
        "",
        (IMPORTER,),
    ),
    Mutant(
        "the verdict of another run is believed",
        "supervisor/job_directory.py",
        '    if fields is None or fields.get("token") != token:\n',
        "    if fields is None:\n",
        (IMPORTER, JOBDIR),
    ),
    Mutant(
        "the verdict is written in place, not by rename",
        "supervisor/job_directory.py",
        '    temporary = f"{name}.{os.urandom(4).hex()}"\n',
        "    temporary = name\n",
        (JOBDIR, RECOVERY),
    ),
    Mutant(
        "a frame's checksum is not looked at",
        "supervisor/frames.py",
        "    if crc32(view[start:end], crc32(view[offset : offset + _UNSIGNED], 0)) != crc:\n"
        "        return None\n",
        "    del view\n",
        (FRAMES, IMPORTER),
    ),
    # --- the supervisor -----------------------------------------------------------
    Mutant(
        "a command outlives its supervisor",
        "supervisor/spawn.py",
        "    _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)\n",
        "",
        (SUPERVISOR, SUPERVISOR_KILLED),
    ),
    Mutant(
        "orphans do not come to the supervisor",
        "supervisor/spawn.py",
        "    return bool(_prctl(36, on, 0, 0, 0) == 0)\n",
        "    return True\n",
        (SUPERVISOR, STOPS),
    ),
    Mutant(
        "a stopped process is not continued to hear its SIGTERM",
        "supervisor/process_tree.py",
        "        self._signal_group(_signal.SIGCONT)\n        for pid in strays:\n"
        "            _signal_child(pid, _signal.SIGCONT)\n",
        "",
        (SUPERVISOR,),
    ),
    Mutant(
        "the clock is ahead of what has passed",
        "supervisor/execution.py",
        "        # Read the clock after the wait, or a grace would be measured wrongly.\n"
        "        now = self._machine.monotonic()\n",
        "        now = self._machine.monotonic() + 1.0\n",
        (SUPERVISOR,),
    ),
    Mutant(
        "stop requests are served before what has ended is reaped",
        "supervisor/execution.py",
        "            if tree.reap():\n                if failpoints.armed:\n"
        "                    failpoints.reach(failpoints.MAIN_REAPED)\n"
        "                self._note_main_end(termination, now)\n"
        "            if tree.left:\n                termination.advance(now)\n",
        "            termination.advance(now)\n            if tree.reap():\n"
        "                self._note_main_end(termination, now)\n",
        (SUPERVISOR,),
    ),
    Mutant(
        "the end of the output is taken for the end of the command",
        "supervisor/execution.py",
        "            complete = termination.complete\n",
        "            complete = termination.complete or not self._capture.descriptors\n",
        (SUPERVISOR,),
    ),
    Mutant(
        "what outlives the command is left alone",
        "supervisor/termination.py",
        "                self._kill_at = now + self._linger\n",
        "                self._given_up = self._all_signalled = True\n",
        (SUPERVISOR, STOPS),
    ),
    Mutant(
        "a second stop gives the command more time",
        "supervisor/termination.py",
        "        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)\n",
        "        self._kill_at = kill_at\n",
        (SUPERVISOR,),
    ),
    Mutant(
        "a supervisor is used again though something had to be killed",
        "supervisor/execution.py",
        "        self.clean = self._termination is None or not self._termination.killed\n",
        "        self.clean = True\n",
        (SUPERVISOR,),
    ),
    Mutant(
        "a job that may have started is started again",
        "supervisor/execution.py",
        "        flags = os.O_WRONLY | os.O_EXCL\n        opened",
        "        flags = os.O_WRONLY\n        opened",
        (SUPERVISOR,),
    ),
    Mutant(
        "a last line without a newline is forgotten",
        "supervisor/capture.py",
        "        if rest and not (reported and self._note(rest, self._time_ns())):\n",
        "        if rest and not rest:\n",
        (CAPTURE, SUPERVISOR),
    ),
    Mutant(
        "a line of jobcore's own comes before text that was written before it",
        "supervisor/capture.py",
        "        self._number_unfinished()\n        self._say(text)\n",
        "        self._say(text)\n",
        (TAIL,),
    ),
    Mutant(
        "unfinished text that the spool has is numbered again",
        "engine/importer.py",
        "            if frame.stream not in later:\n",
        "            if frame.stream:\n",
        (UNFINISHED,),
    ),
    Mutant(
        "a full disk costs the frame that did not fit",
        "supervisor/spool.py",
        "            self._queue.append((header + payload)[written:])\n",
        "            self._queue.append(b'')\n",
        (CAPTURE, SUPERVISOR),
    ),
    Mutant(
        "a short write begins the frame anew",
        "supervisor/spool.py",
        "                self._queue[0] = waiting[written:]\n",
        "                self._queue[0] = waiting\n",
        (CAPTURE,),
    ),
    Mutant(
        "a value to be masked is not held back where a read cuts it",
        "supervisor/redaction.py",
        "        return found, open_end, plain\n",
        "        return found, size, size\n",
        ("tests/unit/test_redaction.py",),
    ),
    # --- life and death -----------------------------------------------------------
    Mutant(
        "an exit code is made up for a job that was lost",
        "engine/recovery.py",
        "            reason=str(Reason.NEVER_STARTED if never else Reason.LOST),\n",
        '            reason="exited",\n            wait_status=0,\n',
        (RECOVERY, SUPERVISOR_KILLED),
    ),
    Mutant(
        "liveness is asked through the holder's own eyes",
        "supervisor/job_directory.py",
        "    return _lock_call(descriptor, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, span) != fcntl.F_UNLCK\n",
        "    return False\n",
        (JOBDIR, RECOVERY),
    ),
    Mutant(
        "what a killed supervisor left behind is not looked for",
        "engine/recovery.py",
        "            unreaped = self._kill_leftovers(run, until)\n",
        "            unreaped: tuple[int, ...] = ()\n",
        (RECOVERY, SUPERVISOR_KILLED),
    ),
    Mutant(
        "a stop request is not delivered again after a crash",
        "engine/recovery.py",
        "        if run.stop_requested is not None:\n            self._stopper.redeliver(run)\n",
        "",
        (RECOVERY,),
    ),
    # --- verdicts and owners --------------------------------------------------------
    Mutant(
        "never_started is said without the mark of the claim",
        "engine/recovery.py",
        '            and job_directory.is_unstarted(directory, run.token or "")\n',
        "",
        (RECOVERY, REMOVED_FILES),
    ),
    Mutant(
        "never_started is said of a directory that the claim did not make",
        "engine/recovery.py",
        "            and self._directories.is_directory_of(directory, run.directory_id)\n",
        "",
        (RECOVERY, REMOVED_FILES, COPIES),
    ),
    Mutant(
        "a claim does not look at the limits",
        "engine/dispatcher.py",
        "        if not room.admits(start.type, start.group):\n            return None\n",
        "",
        (LIMITS,),
    ),
    Mutant(
        "the jobs of one claim do not count for each other",
        "engine/dispatcher.py",
        "            room.take(start.type, start.group)\n",
        "            pass\n",
        (LIMITS,),
    ),
    Mutant(
        "adopted jobs take no slots",
        "engine/dispatcher.py",
        "        return self._slots - self._unended() - len(self._adoption.slots)\n",
        "        return self._slots - self._unended()\n",
        (ADOPTION,),
    ),
    Mutant(
        "an owner's lock is not looked at",
        "engine/ownership.py",
        "                if job_directory.is_locked(descriptor):\n",
        "                if True:\n",
        (OWNED_TASKS,),
    ),
    Mutant(
        "a living owner is taken for dead",
        "engine/ownership.py",
        "                if job_directory.is_locked(descriptor):\n",
        "                if False:\n",
        (OWNED_TASKS,),
    ),
    Mutant(
        "one job that cannot be read stops the sweep of all",
        "engine/recovery.py",
        "        except Exception as error:\n            if patience is None and",
        "        except StoreError as error:\n            if patience is None and",
        (ONE_BAD_JOB, DISPATCHER),
    ),
    Mutant(
        "looking at a copy changes its jobs",
        "engine/recovery.py",
        "        if not run.supervised or not (kill or self.is_here(run)):\n",
        "        if not run.supervised:\n",
        (COPIES,),
    ),
    Mutant(
        "looking kills what is left of a job",
        "engine/recovery.py",
        "        if not kill and self._may_be_of_this_boot(run) and self._may_be_left(run):\n",
        "        if not kill and not self._is_of_this_boot(run) and self._may_be_left(run):\n",
        (COPIES,),
    ),
    Mutant(
        "a stranger with the number of a leftover is signalled",
        "supervisor/pids.py",
        "            if at != 1 and _entry_of(self._pidfd) != entry:\n",
        "            if at != 1 and self._pidfd < 0:\n",
        (NAMESPACES,),
    ),
    Mutant(
        "a change that fails leaves half of itself in the group's commit",
        "storage/writer.py",
        '                driver.execute("ROLLBACK TO one_change")\n',
        "",
        (WRITER,),
    ),
    Mutant(
        "a change that fails takes the others of its group along",
        "storage/writer.py",
        "                failed.append((change, error))\n",
        "                change.fail(error)\n                raise\n",
        (WRITER,),
    ),
    # --- the database ---------------------------------------------------------------
    Mutant(
        "a transaction that writes begins as one that reads",
        "storage/writer.py",
        'connection.cursor.execute("BEGIN IMMEDIATE")',
        'connection.cursor.execute("BEGIN")',
        (DATABASE, TWO_MANAGERS),
    ),
    Mutant(
        "a call between two transactions is made in one",
        "storage/writer.py",
        "                self.worker.give_back(call)  # it is made between two transactions\n"
        "                break\n",
        "                self._sorted([call])\n                continue\n",
        (WRITER,),
    ),
    Mutant(
        "an interrupted call keeps its transaction",
        "storage/writer.py",
        "        return self.worker.hand_over(call)\n",
        "        connection = self._database.open_for_writing()\n"
        '        driver_of(connection).execute("BEGIN IMMEDIATE")\n'
        "        made = change(connection)\n"
        '        driver_of(connection).execute("COMMIT")\n'
        "        connection.close()\n"
        "        return made\n",
        (INTERRUPTED_CALLS,),
    ),
    Mutant(
        "the database file is opened and closed beside SQLite",
        "storage/reading.py",
        "            facts = os.stat(self.path)\n",
        "            os.close(os.open(self.path, os.O_RDONLY))\n            facts = os.stat(self.path)\n",
        (DATABASE,),
    ),
    Mutant(
        "a replaced database is written to",
        "storage/reading.py",
        "        if self._identify() != self.identity:\n",
        "        if False:\n",
        (DATABASE,),
    ),
    Mutant(
        "a fork copies open connections",
        "storage/database.py",
        "        if rests and not self.readers.present():\n            self.close_connections()\n",
        "",
        (DATABASE, TWO_MANAGERS),
    ),
    Mutant(
        "what a Ctrl-C leaves held stays held",
        "embedding/locks.py",
        "        return self.over or (self.frame is not None and is_over(self.frame))\n",
        "        return self.over\n",
        (INTERRUPTS,),
    ),
    Mutant(
        "a socket for a supervisor may be a standard stream",
        "engine/peer.py",
        "    if min(one.fileno() for one in pair) > _STANDARD:\n",
        "    if True:\n",
        (SUPERVISOR,),
    ),
    Mutant(
        "a keeper leaves what a killed supervisor has left",
        "supervisor/keeper.py",
        "                os.kill(pid, _signal.SIGKILL)\n",
        "                os.kill(pid, 0)\n",
        (KEEPER,),
    ),
    Mutant(
        "a host that has changed is served by its former keeper",
        "engine/keeper.py",
        "            if self.current is not None and self.current.kind != kind:\n",
        "            if False:\n",
        (KEEPER,),
    ),
    Mutant(
        "one bad job rolls back all of its round",
        "storage/database.py",
        "            _ROLL_BACK(self._connection)\n",
        "            return False\n",
        (DATABASE, DISPATCHER),
    ),
    Mutant(
        "a final job may change",
        "lifecycle.py",
        '        f"WHEN OLD.status IN ({final}) AND ({changed}) "\n',
        '        f"WHEN OLD.status IN ({final}) AND ({changed}) AND 0 "\n',
        (RULES,),
    ),
    Mutant(
        "what follows from an ending is forgotten",
        "storage/settlement.py",
        "        _follow_up(connection, final, ending.reason, now)\n        if _release",
        "        if _release",
        (CHAINS,),
    ),
    Mutant(
        "pieces of a log are merged in the wrong order",
        "storage/log_segments.py",
        "        select(log_segment).where(these).order_by(log_segment.c.first_sequence)\n"
        "    ).all()\n    if len(rows) < 2:",
        "        select(log_segment).where(these).order_by(log_segment.c.first_sequence.desc())\n"
        "    ).all()\n    if len(rows) < 2:",
        (LOGS, IMPORTER),
    ),
    # --- the queue ----------------------------------------------------------------
    Mutant(
        "a job starts when the first of several jobs that it waits for has ended",
        "storage/dependencies.py",
        "    .values(unmet=job.c.unmet - 1)\n",
        "    .values(unmet=0)\n",
        (GRAPHS, DEPENDENCIES),
    ),
    Mutant(
        "the first failure decides, though it is retried",
        "storage/settlement.py",
        '    dependencies.move(connection, row.id, made["id"])\n    return True\n',
        "    return False\n",
        (GRAPHS, DEPENDENCIES),
    ),
    Mutant(
        "a submission takes the key of a job that has not ended",
        "storage/keys.py",
        '        job.c.workspace_id == bindparam("place"), job.c.held_key == bindparam("wanted"), _IS_OVER\n',
        '        job.c.workspace_id == bindparam("place"), job.c.held_key == bindparam("wanted")\n',
        (KEYS,),
    ),
    Mutant(
        "each attempt of a job queues its hooks",
        "storage/settlement.py",
        "            return True\n"
        "        if pipeline is not None and row.status == Status.COMPLETE:\n",
        "            _queue_hooks(connection, row, pipeline, now)\n"
        "            return True\n"
        "        if pipeline is not None and row.status == Status.COMPLETE:\n",
        (HOOKS,),
    ),
    Mutant(
        "a lost hook stays lost",
        "storage/settlement.py",
        "                retries=_HOOK_RETRIES,\n",
        "",
        (HOOKS,),
    ),
    Mutant(
        "a claim starts a job that waits for others",
        "storage/transitions.py",
        "        job.c.unmet == 0,\n",
        "",
        (DEPENDENCIES,),
    ),
    Mutant(
        "a deleted job has ended as its dependents ask",
        "storage/dependencies.py",
        "        return outcome != DELETED\n",
        "        return True\n",
        (DEPENDENCIES,),
    ),
    Mutant(
        "what waits for a cancelled dependent waits for ever",
        "storage/settlement.py",
        "                    todo.append(_outcome(cancelled, Reason.UPSTREAM))\n",
        "                    pass\n",
        (DEPENDENCIES,),
    ),
    Mutant(
        "a job is tried once more than it may be",
        "retries.py",
        "    if attempt > retries.max or stop_requested:\n",
        "    if attempt > retries.max + 1 or stop_requested:\n",
        (RETRIES,),
    ),
    Mutant(
        "a job that someone stops is retried",
        "retries.py",
        "    if attempt > retries.max or stop_requested:\n",
        "    if attempt > retries.max:\n",
        (RETRIES,),
    ),
    Mutant(
        "a key is free as soon as its job has ended",
        "storage/transitions.py",
        "job.c.held_key), else_=null())\n",
        "null()), else_=null())\n",
        (KEYS,),
    ),
    Mutant(
        "a retry leaves the key with the job that has ended",
        "storage/job_rows.py",
        '        keys.release(connection, values["retry_of"])\n',
        "",
        (KEYS,),
    ),
    Mutant(
        "one job more than the limit may run",
        "storage/limits.py",
        "            self._left.get(scope, 1) > 0 for scope in scopes_of(kind, group)\n",
        "            self._left.get(scope, 1) >= 0 for scope in scopes_of(kind, group)\n",
        (LIMITS,),
    ),
    Mutant(
        "a full limit stops the jobs that are due, but not those that are claimed",
        "engine/dispatcher.py",
        "        room = limits.room(connection)\n        for start in starts:\n",
        "        room = Room({})\n        for start in starts:\n",
        (LIMITS, "tests/faults/test_limits.py"),
    ),
    Mutant(
        "an expired job starts",
        "storage/transitions.py",
        '        or_(job.c.expires.is_(None), job.c.expires > bindparam("now")),\n',
        "",
        (EXPIRY,),
    ),
    Mutant(
        "hooks of a cancelled job run in the environment of the worker",
        "storage/transitions.py",
        "        environment=_ENVIRONMENT_AFTERWARDS,\n        held_key",
        "        environment=null(),\n        held_key",
        (ENVIRONMENTS,),
    ),
    Mutant(
        "the environment of an ended job stays in the file",
        "storage/settlement.py",
        "        _release_environment(connection, final)\n        environments",
        "        environments",
        (ENVIRONMENTS,),
    ),
    Mutant(
        "a deleted job has hooks",
        "storage/settlement.py",
        "    if row.deleted_at is not None:\n        return False\n    if row.type",
        "    if row.type",
        (HOOKS,),
    ),
)
