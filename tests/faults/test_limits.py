"""Limits hold over all processes, whichever of them die."""

from __future__ import annotations

import pytest

from jobcore import JobManager, Status
from tests.faults import invariants
from tests.faults.hosts import host, serve
from tests.faults.rounds import in_rounds
from tests.integration.test_limits import most_running
from tests.processes import until

pytestmark = pytest.mark.usefixtures("warm_supervisors")

LIMIT = 2
RESTARTS = 5
#: Takes one of two places, which nobody else may have, for a moment.
TAKES_A_PLACE = (
    'for n in 1 2; do if mkdir "$1/$n" 2>/dev/null; then sleep "$2"; rmdir "$1/$n"; exit 0; fi; '
    "done; exit 9"
)


@in_rounds(smoke=1, full=20, long=True)
def test_two_workers_that_are_killed_never_exceed_the_limit_of_the_file(tmp_path, rounds):
    """Both are killed and restarted five times; no more than two jobs ever run at once."""
    for chance in rounds:
        database, places = str(tmp_path / f"{rounds.number}.db"), tmp_path / str(rounds.number)
        places.mkdir()
        with JobManager(database, slots=0) as jobs:
            jobs.set_limit(None, LIMIT)
            made = jobs.submit_many(
                [
                    ["sh", "-c", TAKES_A_PLACE, "takes", str(places), f"{chance.random() / 5:.3f}"]
                    for _ in range(30)
                ]
            )
            for _ in range(RESTARTS):
                with host(serve, database, 3) as first, host(serve, database, 3) as second:
                    for one in (first, second):
                        assert one.hear() == "serving"
                    begun = jobs.count_jobs()[Status.QUEUED]
                    until(
                        lambda begun=begun: jobs.count_jobs()[Status.QUEUED] <= max(0, begun - 3),
                        "the start of some jobs",
                    )
                    first.live(chance.random() / 20)
            with host(serve, database, 3), host(serve, database, 3):
                ended = jobs.wait_all([job.id for job in made], 120)
            invariants.check(jobs)

        wrong = [job for job in ended if job.exit_code == 9]
        assert wrong == []
        assert most_running(database) <= LIMIT
        # A worker that dies between a claim and its send leaves a job that never started.
        assert {str(job.reason) for job in ended} <= {"exited", "never_started"}
