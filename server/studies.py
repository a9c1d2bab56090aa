"""Studies of a deployed federation, as the operator's commands see them: proposed, begun, followed, resumed.

The study itself is conducted in another process (`causaldao.server.conduct`). They meet in the database, so that a
command may be interrupted and another may follow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from causaldao.decisions import require_members
from causaldao.dictionary import compare
from causaldao.dictionary import read as read_dictionary
from causaldao.errors import ConfigurationError, IdentityError, MisuseError, NetworkError, by_code
from causaldao.files import hold
from causaldao.server import membership
from causaldao.server.conduct import FAILED, LOG
from causaldao.server.home import Home, utc_now
from causaldao.server.progress import Event
from causaldao.server.recording import propose
from causaldao.server.registry import StudyRow
from causaldao.server.superlink import Control
from causaldao.study import Study

_LOG = logging.getLogger(__name__)
_FOLLOW_SECONDS = 0.5
_STARTING_SECONDS = 30.0  # in which the process of a run takes its lock


def put_forward(home: Home, study: Study) -> StudyRow:
    """Propose a study to the members: on the ledger, and where their nodes find it. The same again changes nothing.

    Raises
    ------
    GuaranteeError
        the members admitted so far are fewer than the study's rules and its faulty need.
    """
    with home.log() as log:
        require_members(study, len(membership.roster(log).members))
        propose(log, study)
    return home.registry.propose(study.hash, study.name, study.to_json(), utc_now())


def misfits(home: Home, study: Study) -> dict[str, list[str]]:
    """By member: what in its signed dictionary does not fit the study; nothing for one that sent none."""
    found = {}
    for member in home.registry.members():
        if member.state == "admitted" and member.dictionary:
            try:
                wrong = compare(read_dictionary(member.dictionary.encode(), member.key), study)
            except IdentityError as error:
                wrong = [error.message]
            if wrong:
                found[member.name] = wrong
    return found


def begin(home: Home, row: StudyRow) -> int:
    """Start a Flower run of a proposed study, or one that goes on with it; its id.

    Raises
    ------
    MisuseError
        it is closed, or is running.
    """
    control = Control(home.require_running()["control"], home.authority.certificate_pem)
    if row.state == "closed":
        raise MisuseError(f"Study {row.name!r} is closed: its results are in {home.study_folder(row.hash)}.")
    folder = home.study_folder(row.hash)
    folder.mkdir(parents=True, exist_ok=True)
    running = MisuseError(f"Study {row.name!r} is running: follow it with causaldao coordinator status {home.folder}.")
    starter = hold(folder / "starting")
    if starter is None:
        raise running
    with starter:
        if _conducted(folder):
            raise running
        if row.run_id is not None and control.running(row.run_id):  # Flower has not noticed that its process is gone
            control.stop(row.run_id)
        run = control.start(row.hash)
        home.registry.set_run(row.hash, run, utc_now())
        deadline = time.monotonic() + _STARTING_SECONDS
        while not _conducted(folder) and not _over(home, run) and time.monotonic() < deadline:
            time.sleep(_FOLLOW_SECONDS)
    return run


def _conducted(folder: Path) -> bool:
    """Whether a process has the study: it holds a lock for as long as it lives."""
    lock = hold(folder / "lock")
    if lock is not None:
        lock.close()
    return lock is None


def _over(home: Home, run: int) -> bool:
    """Whether Flower has ended a run, or the coordinator is gone.

    A SuperLink that is too busy to answer is no sign of either. Its address is another after each start of the
    coordinator.
    """
    status = home.status()
    try:
        return status is None or not Control(status["control"], home.authority.certificate_pem).running(run)
    except NetworkError:
        return home.status() is None


def follow(home: Home, row: StudyRow, run: int, after: int, tell: Callable[[Event], None]) -> None:
    """Tell what happens in a run until it has ended; ``after`` is the last event that is old.

    Raises
    ------
    CausalDAOError
        of the class with which the run ended; a NetworkError if its process died without a word.
    """
    folder = home.study_folder(row.hash)
    while True:
        over = not _conducted(folder) and _over(home, run)
        for event in home.registry.events(row.hash, after):
            after = event.id
            if event.phase == FAILED:
                code, _, text = event.message.partition(": ")
                raise by_code(code)(text)
            tell(Event(event.phase, event.message, event.done, event.total))
            if event.phase == "closed":
                return
        if over:
            raise NetworkError(
                f"The process of study {row.name!r} ended without a result: go on with causaldao study resume "
                f"{home.folder} {row.name}, and see {folder / LOG}."
            )
        time.sleep(_FOLLOW_SECONDS)


def last_event(home: Home, study: str) -> int:
    """The id of the newest event of a study, 0 if there is none."""
    newest, page = 0, home.registry.events(study)
    while page:
        newest = page[-1].id
        page = home.registry.events(study, newest)
    return newest


def find(home: Home, name: str) -> StudyRow:
    """A proposed study by its name or hash; a ConfigurationError that lists the known ones."""
    try:
        return home.registry.study(name)
    except IdentityError as error:
        known = ", ".join(f"{row.name} ({row.hash[:12]})" for row in home.registry.studies()) or "none"
        raise ConfigurationError(f"There is no study {name!r} here; proposed so far: {known}.") from error
