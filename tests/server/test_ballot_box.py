"""The ballot box: a vote counts once, for the motion and the epoch that it was given in."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from causaldao.errors import IdentityError, MisuseError
from causaldao.server.ballot_box import BallotBox
from causaldao.server.registry import Registry

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
MOTION, OTHER = "ab" * 32, "abababab" + "c" * 56


@pytest.fixture
def ballots(tmp_path: Path) -> Iterator[BallotBox]:
    registry = Registry(f"sqlite:///{tmp_path / 'coordinator.db'}", create=True)
    yield registry.ballots
    registry.close()


def test_a_vote_is_counted_for_a_motion_of_another_epoch(ballots: BallotBox) -> None:
    first = ballots.put(MOTION, "federation.faulty", {"faulty": 1}, 3, 7, NOW)
    assert (first.state, first.epoch, first.since, first.votes, first.body) == ("voting", 3, 7, {}, {"faulty": 1})
    voted = ballots.add_vote(MOTION, "alpha", "yes")
    assert ballots.put(MOTION, "federation.faulty", {"faulty": 1}, 3, 9, LATER) == voted
    again = ballots.put(MOTION, "federation.faulty", {"faulty": 1}, 5, 12, LATER)
    assert (again.votes, again.epoch, again.since, again.opened) == ({}, 5, 12, LATER)
    ballots.close(MOTION, "passed")
    assert ballots.put(MOTION, "federation.faulty", {"faulty": 1}, 5, 13, LATER).state == "voting"


def test_a_member_changes_its_vote(ballots: BallotBox) -> None:
    ballots.put(MOTION, "federation.faulty", {"faulty": 1}, 3, 7, NOW)
    ballots.add_vote(MOTION, "beta", "first")
    ballots.add_vote(MOTION, "beta", "second")
    assert ballots.add_vote(MOTION, "alpha", "yes").votes == {"alpha": "yes", "beta": "first"}
    with pytest.raises(IdentityError, match="no motion"):
        ballots.add_vote(OTHER, "alpha", "yes")


def test_another_motion_is_meant(ballots: BallotBox) -> None:
    ballots.put(MOTION, "federation.faulty", {"faulty": 1}, 3, 7, NOW)
    assert ballots.motion(MOTION[:8]).id == ballots.motion(MOTION).id == MOTION
    ballots.put(OTHER, "federation.faulty", {"faulty": 2}, 3, 7, LATER)
    for reference, word in ((MOTION[:8], "more than one"), ("ab", "no motion"), ("%" * 8, "no motion")):
        with pytest.raises(IdentityError, match=word):
            ballots.motion(reference)
    assert ballots.motion(OTHER[:9]).id == OTHER
    assert [row.id for row in ballots.motions()] == [MOTION, OTHER]
    ballots.close(MOTION, "void")
    assert [row.id for row in ballots.motions("voting")] == [OTHER]
    with pytest.raises(MisuseError):
        ballots.close(OTHER, "voting")
