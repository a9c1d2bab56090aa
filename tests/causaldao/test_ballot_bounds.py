"""How many must support a mark: f liars alone enter one, or keep out what every honest member supports."""

from __future__ import annotations

import pytest

from causaldao.ballot_bounds import borne, cautions, least, needed, require
from causaldao.errors import GuaranteeError

GRID = [(threshold, faulty) for threshold in (0.51, 0.6, 2 / 3, 0.75, 0.9) for faulty in range(7)]


@pytest.mark.parametrize(("threshold", "faulty"), GRID)
def test_liars_decide_alone_with_as_many_members_as_are_asked_for(threshold: float, faulty: int) -> None:
    fewest = least(threshold, faulty)
    for members in range(fewest, fewest + 40):
        enough = needed(threshold, faulty, members)
        assert faulty < enough <= members - faulty  # they enter none alone, and keep out nothing that all others have
        assert enough >= threshold * members - 1e-6
        assert borne(threshold, members) >= faulty
        require(threshold, faulty, members)
    if fewest > 1:
        with pytest.raises(GuaranteeError, match=f"largest f is {max(borne(threshold, fewest - 1), 0)}"):
            require(threshold, faulty, fewest - 1)


def test_three_of_five_is_four_in_floating_point() -> None:
    assert [needed(0.6, 0, n) for n in (1, 3, 5, 10, 20)] == [1, 2, 3, 6, 12]
    assert needed(0.6, 7, 10) == 8  # beyond what is borne, f liars still enter nothing
    assert needed(1.0, 0, 9) == 9


def test_a_caution_hides_what_liars_can_do() -> None:
    (alone,) = cautions(0.6, 0, 10)
    assert "nobody can recompute" in alone
    text = cautions(0.6, 2, 10)[1]
    assert "6 must support" in text
    assert "with 4 honest members" in text
    assert "fewer than 6 of the 8 honest" in text
