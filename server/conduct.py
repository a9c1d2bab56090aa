"""A study conducted by the process that Flower starts for it on the coordinator's machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from flwr.serverapp import Grid

from causaldao.children import end_with_parent
from causaldao.errors import CausalDAOError, ConfigurationError
from causaldao.files import hold
from causaldao.ledger.log import Log
from causaldao.logs import configure
from causaldao.server import membership
from causaldao.server.clock import SystemClock
from causaldao.server.coordinator import Coordinator
from causaldao.server.home import Home, utc_now
from causaldao.server.mailbox import Mailbox
from causaldao.server.progress import Event
from causaldao.server.registry import REVOKED, Registry
from causaldao.server.results import result, write
from causaldao.server.standing import Standing
from causaldao.study import Study

_LOG = logging.getLogger(__name__)
LOG = "coordinator.log"
FAILED = "failed"  # the phase of an event that tells why a run ended; its message is CODE: TEXT
_REVOCATIONS_SECONDS = 1.0


def conduct(home: Home, grid: Grid, study_hash: str) -> None:
    """Take a study from where it stands to its end, on the grid of a Flower run."""
    registry, row = home.registry, home.registry.study(study_hash)
    study, folder = Study.from_mapping(row.document), home.study_folder(row.hash)
    folder.mkdir(parents=True, exist_ok=True)
    configure(stream=(folder / LOG).open("a", encoding="utf-8", buffering=1))  # to the end of the process
    end_with_parent()  # else it would wait for a SuperLink that is gone, beside the run that goes on
    lock = _take(folder / "lock")
    if lock is None:
        raise ConfigurationError(f"Study {study.name!r} is being conducted by another process: stop that one first.")

    def progress(event: Event) -> None:
        _LOG.info("%s: %s", event.phase, event.message)
        registry.add_event(study.hash, utc_now(), event.phase, event.message, event.done, event.total)

    def observe(standings: Mapping[str, Standing]) -> None:
        registry.put_standings(study.hash, standings)

    registry.set_state(study.hash, "running", utc_now())
    try:
        with home.log() as log:
            roster = membership.roster(log, membership.proposed_at(log, study.hash))
            coordinator = Coordinator(
                study, roster, home.key, log, Mailbox(grid, roster), SystemClock(), progress,
                observe=observe, revoked=_Revocations(log, registry),
            )  # fmt: skip
            coordinator.run()
            write(folder, result(study, coordinator, roster.names), coordinator)
        registry.set_state(study.hash, "closed", utc_now())
        progress(Event("closed", f"the results are in {folder}"))
    except CausalDAOError as error:
        registry.set_state(study.hash, "aborted", utc_now())
        progress(Event(FAILED, f"{error.code}: {error}"))
        raise
    except Exception as error:
        _LOG.exception("the study failed")
        registry.set_state(study.hash, "aborted", utc_now())
        progress(Event(FAILED, f"error: {type(error).__name__}, see {folder / LOG}"))
        raise


class _Revocations:
    """Who is barred, looked up at most once a second: it is asked for at every turn of the waiting.

    The registry bars at once; on the ledger it stands as soon as enough members have voted for it.
    """

    def __init__(self, log: Log, registry: Registry) -> None:
        self._log = log
        self._registry = registry
        self._known: frozenset[str] = frozenset()
        self._due = 0.0

    def __call__(self) -> frozenset[str]:
        if time.monotonic() >= self._due:
            barred = {member.name for member in self._registry.members() if member.state == REVOKED}
            self._known = membership.revoked(self._log) | barred
            self._due = time.monotonic() + _REVOCATIONS_SECONDS
        return self._known


def _take(path: Path) -> IO[str] | None:
    """A study's lock; the command that started this process looks at it for a moment now and then."""
    for _ in range(10):
        lock = hold(path)
        if lock is not None:
            return lock
        time.sleep(0.2)
    return None
