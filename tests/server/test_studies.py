"""Studies as the operator's commands see them: proposed twice, begun twice, followed to another end than theirs."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causaldao.dictionary import Offered, SiteDictionary, make
from causaldao.errors import (
    CausalDAOError,
    ConfigurationError,
    DataError,
    DeclinedError,
    GuaranteeError,
    MisuseError,
    NetworkError,
)  # fmt: skip
from causaldao.files import hold
from causaldao.server import studies
from causaldao.server.conduct import FAILED, LOG
from causaldao.server.home import Home
from causaldao.server.progress import Event
from causaldao.server.registry import StudyRow
from causaldao.server.standing import Standing, summary
from causaldao.server.studies import begin, find, follow, last_event, misfits, put_forward
from tests.server import homes
from tests.server.homes import NOW
from tests.simulations import small

ASKED = small.study(faulty=0, simulation=False)


class Control:
    """The SuperLink's Control API: runs by id, and whether they are going on."""

    def __init__(self) -> None:
        self.runs: dict[int, bool] = {}
        self.started: list[str] = []
        self.looked: Callable[[], None] = lambda: None
        self.up = True

    def start(self, study: str) -> int:
        self.started.append(study)
        self.runs[100 + len(self.runs)] = True
        return max(self.runs)

    def stop(self, run: int) -> None:
        self.runs[run] = False

    def running(self, run: int) -> bool:
        self.looked()
        return self.runs.get(run, False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = homes.create(tmp_path / "home")
    homes.admit(home, "north", "south", "west")
    return home


@pytest.fixture
def control(home: Home, monkeypatch: pytest.MonkeyPatch) -> Control:
    """A coordinator that runs."""
    found = Control()
    monkeypatch.setattr(studies, "Control", lambda *_: found)
    monkeypatch.setattr(Home, "status", lambda self: {"control": "127.0.0.1:1"} if found.up else None)
    monkeypatch.setattr(studies, "_FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(studies, "_STARTING_SECONDS", 0.05)
    return found


@pytest.fixture
def row(home: Home) -> StudyRow:
    return put_forward(home, ASKED)


# proposing


def test_a_study_that_is_proposed_twice_is_two(home: Home) -> None:
    first = put_forward(home, ASKED)
    assert put_forward(home, ASKED) == first
    with home.log() as log:
        assert len(log.entries(kinds=("study.proposed",))) == 1
    assert [row.hash for row in home.registry.studies()] == [ASKED.hash]


def test_a_study_proposed_again_starts_anew(home: Home, row: StudyRow) -> None:
    home.registry.set_state(row.hash, "closed", NOW)
    assert put_forward(home, ASKED).state == "closed"


def test_a_study_is_proposed_to_members_that_cannot_bear_its_liars(home: Home) -> None:
    for faulty in (1, 3):
        with pytest.raises(GuaranteeError):
            put_forward(home, small.study(faulty=faulty))
    with home.log() as log:
        assert not log.entries(kinds=("study.proposed",))
    assert home.registry.studies() == ()


def test_the_revoked_count_among_the_members_of_a_new_study(home: Home) -> None:
    """Five members bear one liar by this rule, four do not."""
    homes.admit(home, "east", "hill")
    asked = small.study(faulty=1)
    home.revoke("hill", "a test", NOW)
    with pytest.raises(GuaranteeError):
        put_forward(home, asked)
    homes.admit(home, "harbour")
    assert put_forward(home, asked).state == "proposed"


# dictionaries


def announce(home: Home, name: str, *offered: Offered, federation: str = "test", key: str = "") -> None:
    site = SiteDictionary(federation, name, offered)
    home.registry.set_dictionary(name, make(site, homes.key(key or name), secrets.token_hex(16)).decode())


def test_what_a_members_dictionary_says_against_a_study_is_not_told(home: Home) -> None:
    fits = [Offered(name, "continuous") for name in "abc"]
    announce(home, "north", *fits)
    announce(home, "south", Offered("a", "binary"), fits[1])
    found = misfits(home, ASKED)
    assert set(found) == {"south"}  # north fits, west said nothing
    assert ["'a': kind" in found["south"][0], "'c': missing" in found["south"][1]] == [True, True]


def test_a_forged_dictionary_is_believed_or_breaks_the_rest(home: Home) -> None:
    announce(home, "north", Offered("a", "binary"))
    announce(home, "south", *(Offered(name, "continuous") for name in "abc"), key="west")
    found = misfits(home, ASKED)
    assert set(found) == {"north", "south"}
    assert len(found["south"]) == 1
    assert "signature" in found["south"][0] or "key" in found["south"][0]


def test_dictionaries_of_those_who_are_no_members_count(home: Home) -> None:
    homes.join(home, "pending")
    announce(home, "pending", Offered("a", "binary"))
    announce(home, "south", Offered("a", "binary"))
    home.revoke("south", "a test", NOW)
    assert misfits(home, ASKED) == {}


# beginning


def test_a_closed_study_is_run_again(home: Home, control: Control, row: StudyRow) -> None:
    home.registry.set_state(row.hash, "closed", NOW)
    with pytest.raises(MisuseError, match="results are in"):
        begin(home, find(home, "small"))
    assert not control.started


def test_a_study_is_conducted_by_two_processes(home: Home, control: Control, row: StudyRow) -> None:
    folder = home.study_folder(row.hash)
    folder.mkdir(parents=True)
    lock = hold(folder / "lock")
    assert lock is not None
    with pytest.raises(MisuseError, match="is running"):
        begin(home, row)
    assert not control.started
    lock.close()
    run = begin(home, row)
    assert control.started == [row.hash]
    assert find(home, "small").run_id == run
    taken = hold(folder / "lock")  # free for the study's own process
    assert taken is not None
    taken.close()


def test_a_run_whose_process_is_gone_goes_on_beside_the_new_one(
    home: Home, control: Control, row: StudyRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(home, row)
    second = begin(home, find(home, "small"))
    assert (control.runs[first], control.runs[second]) == (False, True)
    assert find(home, "small").run_id == second
    control.runs[second] = False  # ended by itself: there is nothing to stop
    stopped: list[int] = []
    monkeypatch.setattr(control, "stop", stopped.append)
    begin(home, find(home, "small"))
    assert not stopped


def test_a_study_begins_without_a_coordinator(home: Home, row: StudyRow) -> None:
    with pytest.raises(NetworkError, match="coordinator start"):
        begin(home, row)
    assert not home.study_folder(row.hash).exists()


# following


def tell(home: Home, phase: str, message: str = "", done: int | None = None, total: int | None = None) -> None:
    home.registry.add_event(ASKED.hash, NOW, phase, message, done, total)


def test_old_events_are_told_again_or_new_ones_not(home: Home, control: Control, row: StudyRow) -> None:
    for number in range(3):
        tell(home, "roll call", f"of the last run {number}")
    after, run, heard = last_event(home, row.hash), begin(home, row), list[Event]()
    tell(home, "evidence", "", 1, 3)

    def go_on() -> None:
        if len(heard) == 1:
            tell(home, "evidence", "", 3, 3)
            tell(home, "closed", "the results are there")

    control.looked = go_on
    follow(home, row, run, after, heard.append)
    assert [(event.phase, event.done) for event in heard] == [("evidence", 1), ("evidence", 3), ("closed", None)]


@pytest.mark.parametrize(
    ("text", "kind", "exit_code"),
    [
        ("guarantee: 2 of 5: too few", GuaranteeError, 13),
        ("data: a column", DataError, 11),
        ("declined: no", DeclinedError, 18),
        ("error: ZeroDivisionError, see the log", CausalDAOError, 1),
        ("unheard-of: x", CausalDAOError, 1),
    ],
)
def test_a_failed_run_ends_in_another_error_than_its_own(
    home: Home, control: Control, row: StudyRow, text: str, kind: type[CausalDAOError], exit_code: int
) -> None:
    run = begin(home, row)
    tell(home, FAILED, text)
    with pytest.raises(CausalDAOError) as found:
        follow(home, row, run, 0, lambda event: None)
    assert type(found.value) is kind
    assert found.value.exit_code == exit_code
    assert found.value.message == text.partition(": ")[2]


def test_the_last_words_of_a_run_that_has_ended_are_lost(home: Home, control: Control, row: StudyRow) -> None:
    run = begin(home, row)
    control.runs[run] = False
    tell(home, "closed", "the results are there")
    follow(home, row, run, 0, lambda event: None)


def test_a_process_that_died_without_a_word_is_waited_for(home: Home, control: Control, row: StudyRow) -> None:
    run = begin(home, row)
    heard: list[Event] = []
    tell(home, "evidence")

    def die() -> None:
        control.runs[run] = not heard

    control.looked = die
    with pytest.raises(NetworkError, match="study resume") as found:
        follow(home, row, run, 0, heard.append)
    assert LOG in found.value.message
    assert [event.phase for event in heard] == ["evidence"]


def test_a_coordinator_that_was_killed_is_waited_for(home: Home, control: Control, row: StudyRow) -> None:
    run = begin(home, row)

    def gone() -> None:
        control.up = False
        raise NetworkError("refused")

    control.looked = gone
    with pytest.raises(NetworkError, match="study resume"):
        follow(home, row, run, 0, lambda event: None)


def test_a_superlink_that_is_busy_is_taken_for_a_dead_process(home: Home, control: Control, row: StudyRow) -> None:
    looks: list[int] = []

    def busy() -> None:
        looks.append(1)
        if len(looks) == 3:
            tell(home, "closed", "the results are there")
        raise NetworkError("timed out")

    control.looked = busy
    follow(home, row, begin(home, row), 0, lambda event: None)
    assert len(looks) >= 3


def test_a_run_that_is_still_conducted_is_given_up_because_flower_did(
    home: Home, control: Control, row: StudyRow
) -> None:
    run, heard = begin(home, row), list[Event]()
    control.runs[run] = False  # it heard no heartbeat for a while
    lock = hold(home.study_folder(row.hash) / "lock")
    assert lock is not None
    tell(home, "evidence")

    def on(event: Event) -> None:
        heard.append(event)
        if event.phase == "evidence":
            tell(home, "closed", "the results are there")

    follow(home, row, run, 0, on)
    lock.close()
    assert [event.phase for event in heard] == ["evidence", "closed"]


def test_the_newest_event_is_sought_on_the_first_page_only(
    home: Home, row: StudyRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert last_event(home, row.hash) == 0
    for _ in range(7):
        tell(home, "training")
    whole = home.registry.events
    monkeypatch.setattr(home.registry, "events", lambda study, after_id=0: whole(study, after_id, limit=3))
    assert last_event(home, row.hash) == max(event.id for event in whole(row.hash))


# what the operator reads


def standings(*found: Any) -> dict[str, Standing]:
    return {f"m{number}": Standing(*one) for number, one in enumerate(found)}


def test_the_summary_says_otherwise_than_the_standings() -> None:
    approved, answered, pending = ("approved",), ("answered",), ("pending", "not approved yet")
    data, budget = ("declined", "a column", "data", 11), ("declined", "spent", "budget", 12)
    assert summary(standings(approved, answered, data)) == "2 of 3 answered, 1 declined: data 11"
    assert (
        summary(standings(pending, data, approved, data, budget))
        == "1 of 5 approved, 1 declined: budget 12, 2 declined: data 11, 1 pending"
    )
    assert summary(standings(("revoked",), ("not connected",))) == "0 of 2 approved, 1 not connected, 1 revoked"


def test_a_study_is_found_by_a_name_that_it_does_not_have(home: Home, row: StudyRow) -> None:
    assert [find(home, name).hash for name in ("small", row.hash, row.hash[:12])] == [row.hash] * 3
    with pytest.raises(ConfigurationError, match=rf"proposed so far: small \({row.hash[:12]}\)"):
        find(home, "smaller")
