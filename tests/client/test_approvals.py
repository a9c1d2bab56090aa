"""What would go wrong with approvals: one that was altered, one that outlives its withdrawal, a yes nobody gave."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from causaldao.budget import plan
from causaldao.client import approvals
from causaldao.client.approvals import approve, approved, decisions, decline, declined, releases, require, withdraw
from causaldao.errors import ConfigurationError, DeclinedError, RefusedError
from tests.causaldao.test_estimates import study as sums
from tests.simulations import small

STUDY = small.study(faulty=0, rounds=2)
OTHER = small.study(faulty=0, rounds=0, effects=[])
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def altered(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_nothing_is_approved_by_default(tmp_path: Path) -> None:
    assert approved(tmp_path) == declined(tmp_path) == frozenset()
    with pytest.raises(RefusedError, match="not approved"):
        require(tmp_path, STUDY.hash)


def test_an_approval_says_what_when_and_by_whom(tmp_path: Path) -> None:
    path = approve(tmp_path, STUDY, NOW, "Dr Meyer")
    require(tmp_path, STUDY.hash)
    assert approved(tmp_path) == {STUDY.hash}
    (decision,) = decisions(tmp_path)
    assert (decision.study.hash, decision.at, decision.by) == (STUDY.hash, "2026-11-21T12:00:00+00:00", "Dr Meyer")
    assert json.loads(path.read_text())["releases"] == releases(STUDY)
    assert path.stat().st_mode & 0o077 == 0
    assert [file.name for file in path.parent.iterdir()] == [f"{STUDY.hash}.json"]


def test_another_study_is_not_approved_with_it(tmp_path: Path) -> None:
    approve(tmp_path, STUDY, NOW)
    with pytest.raises(RefusedError):
        require(tmp_path, OTHER.hash)
    require(tmp_path, OTHER.hash, [OTHER.hash])


def test_an_altered_approval_is_refused_by_name(tmp_path: Path) -> None:
    path = approve(tmp_path, STUDY, NOW)
    altered(path, study=OTHER.to_json())
    with pytest.raises(RefusedError, match="altered after approval") as caught:
        require(tmp_path, STUDY.hash)
    assert str(path) in str(caught.value)
    with pytest.raises(RefusedError):
        require(tmp_path, STUDY.hash, [STUDY.hash])
    with pytest.raises(RefusedError, match=path.name):
        approved(tmp_path)
    approve(tmp_path, OTHER, NOW)
    require(tmp_path, OTHER.hash)  # one bad file does not close the others


def test_an_approval_copied_to_another_name_approves_nothing(tmp_path: Path) -> None:
    path = approve(tmp_path, STUDY, NOW)
    path.rename(path.with_name(f"{OTHER.hash}.json"))
    with pytest.raises(RefusedError, match="altered"):
        require(tmp_path, OTHER.hash)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", '{"study": 7, "decision": "approved"}', '"x"', "9" * 5000])
def test_a_file_that_cannot_be_read_approves_nothing(text: str, tmp_path: Path) -> None:
    path = approve(tmp_path, STUDY, NOW)
    path.write_text(text)
    with pytest.raises(RefusedError, match="cannot be read"):
        require(tmp_path, STUDY.hash)


def test_a_decision_of_another_word_approves_nothing(tmp_path: Path) -> None:
    altered(approve(tmp_path, STUDY, NOW), decision="yes")
    with pytest.raises(RefusedError, match="altered"):
        require(tmp_path, STUDY.hash)


def test_a_withdrawn_approval_still_holds(tmp_path: Path) -> None:
    approve(tmp_path, STUDY, NOW)
    withdraw(tmp_path, STUDY.hash)
    with pytest.raises(RefusedError, match="not approved"):
        require(tmp_path, STUDY.hash)
    with pytest.raises(ConfigurationError, match="Nothing is recorded"):
        withdraw(tmp_path, STUDY.hash)


def test_a_declined_study_is_told_from_an_undecided_one(tmp_path: Path) -> None:
    decline(tmp_path, STUDY, NOW)
    with pytest.raises(DeclinedError) as caught:
        require(tmp_path, STUDY.hash, [STUDY.hash])
    assert (caught.value.code, caught.value.exit_code, caught.value.page) == ("declined", 18, "refused")
    assert (approved(tmp_path), declined(tmp_path)) == (frozenset(), {STUDY.hash})
    approve(tmp_path, STUDY, NOW)
    require(tmp_path, STUDY.hash)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "0" * 63, "G" * 64, "0" * 65])
def test_a_hash_that_is_none_leads_to_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no hash"):
        require(tmp_path, name)
    with pytest.raises(RefusedError):
        withdraw(tmp_path, name)


def test_each_release_has_its_cost(tmp_path: Path) -> None:
    evidence, training, evaluation = releases(STUDY)
    assert evidence["what"].startswith("evidence")
    assert 0 < evidence["epsilon"] <= STUDY.privacy.epsilon * STUDY.privacy.split.evidence
    assert max(training["epsilon"], evaluation["epsilon"]) < plan(STUDY).epsilon
    assert "2 rounds" in training["what"]
    assert [r["what"][:8] for r in releases(OTHER)] == ["evidence"]


def test_sums_for_effects_are_released_unsaid(tmp_path: Path) -> None:
    asked = sums()
    evidence, effects = releases(asked)
    assert effects["what"] == "effects, once: for each of dose on pain, three noisy sums over the records"
    assert 0 < effects["epsilon"] < plan(asked).epsilon
    assert evidence["epsilon"] <= asked.privacy.epsilon * asked.privacy.split.evidence


def test_a_folder_that_cannot_be_written_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / approvals.FOLDER).write_text("a file")
    with pytest.raises(ConfigurationError, match="Nothing was decided"):
        approve(tmp_path, STUDY, NOW)
