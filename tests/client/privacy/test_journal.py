"""What would go wrong with the account: a refund after a crash, a second draw, an overspend, a fresh budget
by renaming.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import RDPAccountant
from sqlalchemy import event

from causaldao.budget import Spend, epsilon_of
from causaldao.client.privacy.journal import Cap, Journal, ReleaseKey
from causaldao.errors import BudgetError, ConfigurationError, MisuseError

DELTA = 1e-5
AMPLE = Cap(50.0, DELTA)
EVIDENCE = (Spend(4.0),)
TRAINING = (Spend(1.5, 0.05, 200),)


def key(
    round: int = 0, *, study: str = "a" * 64, dataset: str = "ward", kind: str = "evidence", base: str = ""
) -> ReleaseKey:
    return ReleaseKey(study, dataset, kind, round, base)


def never() -> bytes:
    raise AssertionError("noise was drawn")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.db")


def in_child(action: Callable[[], object]) -> int:
    """Run in a forked process; its wait status (the signal's number if it was killed)."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def kill() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def test_asked_again_gives_the_stored_bytes_and_draws_nothing(journal: Journal) -> None:
    first = journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"noisy")
    spent = journal.spent("ward", DELTA)
    assert journal.release(key(), EVIDENCE, AMPLE, AMPLE, never) == first == b"noisy"
    assert journal.spent("ward", DELTA) == spent > 0


def test_it_is_remembered_when_opened_again(journal: Journal, tmp_path: Path) -> None:
    journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"noisy")
    again = Journal.open(tmp_path / "journal.db")
    assert again.release(key(), EVIDENCE, AMPLE, AMPLE, never) == b"noisy"
    assert [(debit.key, debit.spends, debit.stored) for debit in again.debits()] == [(key(), EVIDENCE, True)]


def test_every_part_of_the_key_makes_another_release(journal: Journal) -> None:
    keys = [key(), key(1), key(study="b"), key(dataset="icu"), key(kind="train"), key(base="f00d")]
    for place, one in enumerate(keys):
        journal.release(one, EVIDENCE, AMPLE, AMPLE, partial(bytes, [place]))
    assert [journal.release(one, EVIDENCE, AMPLE, AMPLE, never) for one in keys] == [bytes([k]) for k in range(6)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_between_debit_and_send_never_refunds_and_the_redraw_is_free(journal: Journal) -> None:
    assert in_child(lambda: journal.release(key(), EVIDENCE, AMPLE, AMPLE, kill)) == signal.SIGKILL
    spent = journal.spent("ward", DELTA)
    assert spent == epsilon_of(EVIDENCE, DELTA)
    assert [debit.stored for debit in journal.debits()] == [False]
    exact = Cap(spent, DELTA)  # no room for a second debit
    assert journal.release(key(), EVIDENCE, exact, exact, lambda: b"redrawn") == b"redrawn"
    assert journal.spent("ward", DELTA) == spent
    with pytest.raises(BudgetError):
        journal.release(key(1), EVIDENCE, exact, exact, never)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("commit", "debits"), [(1, 0), (2, 1)])
def test_killed_at_a_commit_leaves_either_no_debit_and_no_draw_or_the_debit(
    journal: Journal, commit: int, debits: int
) -> None:
    def action() -> None:
        commits = []

        @event.listens_for(journal._engine, "commit")
        def _kill(_connection: object) -> None:
            commits.append(1)
            if len(commits) == commit:
                kill()

        journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"lost" if commits else never())

    assert in_child(action) == signal.SIGKILL
    assert len(journal.debits()) == debits
    assert journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"kept") == b"kept"
    assert len(journal.debits()) == 1


def test_a_process_killed_while_drawing_leaves_a_journal_that_another_can_use(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    script = (
        "import os, signal, sys; from causaldao.budget import Spend\n"
        "from causaldao.client.privacy.journal import Cap, Journal, ReleaseKey\n"
        "cap = Cap(50.0, 1e-5); key = ReleaseKey('s', 'ward', 'evidence')\n"
        "draw = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.open(sys.argv[1]).release(key, [Spend(4.0)], cap, cap, draw)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -signal.SIGKILL
    assert Journal.open(path).spent("ward", DELTA) == epsilon_of(EVIDENCE, DELTA)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_that_ask_at_once_get_the_same_bytes_for_one_debit(journal: Journal) -> None:
    start, go = os.pipe()
    out, put = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(start, 1)  # the end of file: all start together
            os.write(put, journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: os.urandom(16)))
            os._exit(0)
        children.append(child)
    os.close(go)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    told = os.read(out, 1000)
    for end in (start, out, put):
        os.close(end)
    assert told == told[:16] * 4
    assert len(journal.debits()) == 1


def test_a_draw_that_is_overtaken_is_thrown_away(journal: Journal) -> None:
    def draw() -> bytes:
        assert journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"first") == b"first"
        return b"second"

    assert journal.release(key(), EVIDENCE, AMPLE, AMPLE, draw) == b"first"
    assert journal.spent("ward", DELTA) == epsilon_of(EVIDENCE, DELTA)


def test_an_overspend_is_refused_before_anything_is_drawn_or_debited(journal: Journal) -> None:
    tight = Cap(epsilon_of(EVIDENCE, DELTA) * 1.2, DELTA)
    journal.release(key(), EVIDENCE, tight, AMPLE, lambda: b"noisy")
    with pytest.raises(BudgetError, match=r"study aaaaaaaaaaaa.*past the cap.*Nothing was drawn"):
        journal.release(key(1), EVIDENCE, tight, AMPLE, never)
    assert len(journal.debits()) == 1
    assert journal.release(key(), EVIDENCE, tight, AMPLE, never) == b"noisy"


def test_the_lifetime_cap_holds_over_studies_by_the_name_of_the_data_set(journal: Journal) -> None:
    lifetime = Cap(epsilon_of(EVIDENCE * 3, DELTA), DELTA)
    for study in "bcd":
        journal.release(key(study=study), EVIDENCE, AMPLE, lifetime, lambda: b"noisy")
    with pytest.raises(BudgetError, match="'ward' over its lifetime"):
        journal.release(key(study="e"), EVIDENCE, AMPLE, lifetime, never)
    assert journal.release(key(study="e", dataset="icu"), EVIDENCE, AMPLE, lifetime, lambda: b"other") == b"other"
    assert journal.spent("ward", DELTA, study="b") < journal.spent("ward", DELTA) == lifetime.epsilon


def test_what_other_studies_spent_does_not_count_against_a_study(journal: Journal) -> None:
    tight = Cap(epsilon_of(EVIDENCE, DELTA) * 1.2, DELTA)
    for study in "bc":
        assert journal.release(key(study=study), EVIDENCE, tight, AMPLE, lambda: b"noisy") == b"noisy"


def test_each_cap_is_judged_at_its_own_delta(journal: Journal) -> None:
    at_study, at_lifetime = epsilon_of(EVIDENCE, 1e-5), epsilon_of(EVIDENCE, 1e-9)
    assert at_study < at_lifetime
    with pytest.raises(BudgetError, match="1e-09"):
        journal.release(key(), EVIDENCE, Cap(at_study, 1e-5), Cap(at_study, 1e-9), never)


def test_a_failing_draw_stays_spent(journal: Journal) -> None:
    with pytest.raises(ZeroDivisionError):
        journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: bytes(1 // 0))
    assert journal.spent("ward", DELTA) == epsilon_of(EVIDENCE, DELTA)


def test_a_release_cannot_be_asked_for_at_another_cost(journal: Journal) -> None:
    journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"noisy")
    for other in ((Spend(3.9),), EVIDENCE * 2):
        with pytest.raises(BudgetError, match="one cost"):
            journal.release(key(), other, AMPLE, AMPLE, never)


@pytest.mark.parametrize(
    "spends",
    [
        (),
        (Spend(0.0),),
        (Spend(float("inf")),),
        (Spend(float("nan")),),
        (Spend(1.0, 1.5),),
        (Spend(1.0, 0.5, 0),),
        (Spend(-1.0),),
    ],
)
def test_a_release_without_a_finite_cost_is_refused(journal: Journal, spends: tuple[Spend, ...]) -> None:
    with pytest.raises(MisuseError):
        journal.release(key(), spends, AMPLE, AMPLE, never)


def test_epsilon_is_that_of_opacus_and_no_less_than_the_privacy_loss_distribution(journal: Journal) -> None:
    for round in range(3):
        journal.release(key(round, kind="train"), TRAINING, AMPLE, AMPLE, lambda: b"delta")
    journal.release(key(), EVIDENCE, AMPLE, AMPLE, lambda: b"moments")
    accountant = RDPAccountant()
    accountant.history = [(1.5, 0.05, 600), (4.0, 1.0, 1)]
    ours = journal.spent("ward", DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)
    steps = SelfComposedDpEvent(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.5)), 600)
    exact = PLDAccountant(value_discretization_interval=1e-3).compose(ComposedDpEvent([steps, GaussianDpEvent(4.0)]))
    assert 0.5 * ours < exact.get_epsilon(DELTA) <= ours


def test_the_file_is_private_and_commits_are_durable(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with journal._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 3
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "delete"


def test_a_damaged_journal_releases_nothing(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(BudgetError, match="restore"):
        Journal.open(tmp_path / "journal.db")


def test_a_journal_of_a_later_format_is_left_alone(tmp_path: Path) -> None:
    later = sqlite3.connect(tmp_path / "journal.db")
    later.execute("PRAGMA user_version = 2")
    later.close()
    with pytest.raises(ConfigurationError, match="format 2"):
        Journal.open(tmp_path / "journal.db")


def test_a_journal_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="folder"):
        Journal.open(tmp_path / "absent" / "journal.db")


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (float("inf"), 1e-5), (float("nan"), 1e-5), (1, 0), (1, 1)])
def test_a_cap_that_bounds_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigurationError):
        Cap(epsilon, delta)
