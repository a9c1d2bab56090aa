"""A study that asks for effects by members' sums, with two of eight that lie about theirs: who is named, what the
ledger holds, and what an audit finds when coordinator and witnesses rewrite it together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldao.budget import plan
from causaldao.errors import GuaranteeError
from causaldao.models.summaries import LATTICE
from causaldao.server.progress import Event
from causaldao.signing import Tensors, peek
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.cli import summary
from causaldao.simulations.engine import Faults
from causaldao.simulations.federation import Setting, simulate
from causaldao.study import Study
from tests.causaldao import cases
from tests.causaldao.test_audit import Case, Change
from tests.causaldao.test_audit import _case as case_of
from tests.causaldao.test_audit import _named as named
from tests.causaldao.test_audit import _of as of
from tests.causaldao.test_estimates import ROBUST, SPLIT, TRUTH, study
from tests.counts import count
from tests.server.test_coordinator import BAD, Forger
from tests.simulations import small

LIARS = ("hospital-03", "hospital-06")
MEMBERS = 8
PLAIN = {key: ROBUST[key] for key in ("treatment", "outcome", "adjustment")}
ASKED = study(PLAIN, ROBUST, consensus={"faulty": 2})


def shifted(records: float) -> Conduct:
    """Sums as if so many records more had their influence values at the clip."""

    def tensors(kind: str, honest: Tensors) -> Tensors:
        if kind != "effects":
            return honest
        return {"sums": honest["sums"] + np.array([[int(records * LATTICE), 0, 0]])}

    return Conduct(tensors=tensors)


class PowerCut(Exception):
    pass


def run(out: Path, asked: Study = ASKED, rows: int = 5000, **options: Any) -> dict[str, Any]:
    table = cases.rows(np.random.default_rng(3), rows)
    return simulate(asked, table, out, Setting(members=options.pop("members", MEMBERS), seed=1), **options)


@pytest.fixture(scope="module")
def lied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run was cut off after the members had answered and before that was recorded, and then resumed."""
    out = tmp_path_factory.mktemp("effects") / "run"
    conducts = {LIARS[0]: shifted(200), LIARS[1]: shifted(-250)}

    def cut(event: Event) -> None:
        if event.phase == "effects" and "answered" in event.message:
            raise PowerCut

    with pytest.raises(PowerCut):
        run(out, conducts=conducts, progress=cut)
    assert not (out / "result.json").exists()
    assert all(lines[-1][0] == "effects" for lines in small.debits(out).values())
    return out, run(out, conducts=conducts, resume=True)


@pytest.fixture(scope="module")
def case(lied: tuple[Path, dict[str, Any]]) -> Case:
    return case_of(lied[0])


def robust(result: dict[str, Any]) -> dict[str, Any]:
    (effect,) = [effect for effect in result["effects"] if effect.get("method") == "aipw"]
    return effect


def test_two_liars_of_eight_go_unnamed_or_move_the_answer_out_of_its_interval(
    lied: tuple[Path, dict[str, Any]],
) -> None:
    out, result = lied
    said = robust(result)
    assert sorted(said["accused"]) == list(LIARS)
    low, high = said["interval"]
    assert low < TRUTH < high
    assert low < said["pooled"] < high
    assert abs(said["estimate"] - said["pooled"]) < 2 * said["standard_error"]
    assert said["interval_with_liars"] == [pytest.approx(low), pytest.approx(high)]  # both of the two are dropped
    assert [effect.get("method") for effect in result["effects"]] == [None, "aipw"]
    for name in LIARS:
        status, reason = small.status(result, name)
        assert status == "accused"
        assert "its sums for dose on pain deviate" in reason
    text = (out / "report.html").read_text()
    assert "its sums fail the test against the others" in text
    assert f"<b>{', '.join(said['accused'])}</b>" in text
    assert f"accused by their sums: {', '.join(said['accused'])}" in summary(result, out)


def test_a_member_spends_more_than_its_plan_or_twice(lied: tuple[Path, dict[str, Any]]) -> None:
    out, result = lied
    planned = plan(ASKED)
    for name, lines in small.debits(out).items():
        assert lines == [("evidence", 0, (planned.evidence,)), ("effects", 0, (planned.effects,))], name
    assert set(result["privacy"]["spent"].values()) == {planned.epsilon}
    assert 0.99 * 8 < planned.epsilon <= 8
    assert result["privacy"]["split"] == SPLIT


def test_the_ledger_lacks_a_word_or_the_audit_a_check(lied: tuple[Path, dict[str, Any]]) -> None:
    out, _ = lied
    lines = small.lines(out)
    words = [line for line in lines if line.kind == "effects"]
    assert len(words) == MEMBERS
    assert all(len(line.payloads) == 1 for line in words)
    (decided,) = [line for line in lines if line.kind == "estimate"]
    assert {peek(line.body["envelope"].encode()).body["base"] for line in words} == {decided.body["base"]}
    assert max(line.index for line in words) < decided.index
    found = small.audited(out)
    assert (found.faults, found.unchecked) == ([], [])
    assert any(f"1 effects from the sums of {MEMBERS} members" in text for text in found.checked)


def _moved(records: list[dict[str, Any]]) -> None:
    of(records, "estimate")["body"]["effects"][0]["estimate"] += 0.01


def _cleared(records: list[dict[str, Any]]) -> None:
    of(records, "estimate")["body"]["effects"][0]["accused"] = []


def _other_question(records: list[dict[str, Any]]) -> None:
    of(records, "estimate")["body"]["base"] = "0" * 64


def _not_asked(records: list[dict[str, Any]]) -> None:
    of(records, "estimate")["body"]["asked"].remove(LIARS[0])


def _none(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["kind"] != "estimate"]


def _left_out(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A member's word is left out, and nothing says why."""
    return [record for record in records if record is not of(records, "effects", 1)]


def _unaccounted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spends = [record for record in records if record["kind"] == "privacy.spend" and record["body"]["kind"] == "effects"]
    return [record for record in records if record is not spends[0]]


def _cheaper(records: list[dict[str, Any]]) -> None:
    for record in records:
        if record["kind"] == "privacy.spend" and record["body"]["kind"] == "effects":
            record["body"]["noise_multiplier"] *= 2


FORGERIES: dict[str, tuple[Change, str]] = {
    "an estimate": (_moved, "do not follow from the members' sums"),
    "an accusation": (_cleared, "do not follow from the members' sums"),
    "the question": (_other_question, "the question or who was asked"),
    "who was asked": (_not_asked, "the question or who was asked"),
    "no estimate": (_none, "none is estimated"),
    "a word": (_left_out, "do not follow from the members' sums"),
    "an unpaid word": (_unaccounted, "not in its privacy account"),
    "a cheaper word": (_cheaper, "not in the study's plan"),
}


@pytest.mark.parametrize("forged", list(FORGERIES)[:: count(2, 1)])
def test_what_does_not_follow_from_the_sums_passes_the_audit(forged: str, case: Case) -> None:
    change, words = FORGERIES[forged]
    found = case.forge(change)
    assert any(words in str(fault) for fault in found.faults), [str(fault) for fault in found.faults]


def test_sums_made_for_another_question_pass_the_audit(case: Case) -> None:
    index = []

    def change(records: list[dict[str, Any]]) -> None:
        case.resign(of(records, "effects"), body={"base": "0" * 64})
        index.append(of(records, "effects")["index"])

    named(case.forge(change), index[0], "answer another question")


@pytest.mark.skipif(not count(0, 1), reason="a run of its own: what it shows is shown elsewhere piece by piece")
def test_two_contents_or_silence_end_the_study_or_leave_no_trace(tmp_path: Path) -> None:
    out = tmp_path / "run"
    forger = Forger(out, "effects", True, lambda f, p: f.resigned(p, tensors={"sums": p.tensors["sums"] + 1}))
    reached = Faults(lambda m: (m.metadata.dst_node_id, m.metadata.message_type) != (1005, "query.effects"), forger)
    result = run(out, faults=reached)
    said = robust(result)
    assert said["faulty"] == 0  # both are counted among the two
    assert not {*LIARS} & {*said["weights"]}
    assert small.status(result, BAD) == ("excluded", "signed two contents for one effects")
    assert small.status(result, LIARS[1])[0] == "absent"
    lines = small.lines(out)
    (proof,) = [line for line in lines if line.kind == "equivocation"]
    assert (proof.body["member"], proof.body["kind"]) == (BAD, "effects")
    assert {line.body["member"] for line in lines if line.kind == "effects"} == {*said["weights"]}
    spends = [line.body["member"] for line in lines if line.kind == "privacy.spend" and line.body["kind"] == "effects"]
    assert len(spends) == MEMBERS  # whoever was asked may have released
    assert small.audited(out).faults == []


@pytest.mark.skipif(not count(0, 1), reason="two runs of their own: evidence and training show it in the quick suite")
def test_sums_that_too_few_gave_are_unpaid_or_paid_twice(tmp_path: Path) -> None:
    out, away = tmp_path / "run", range(1003, 1007)
    reached = Faults(
        lambda m: m.metadata.dst_node_id not in away or m.metadata.message_type != "query.effects",
    )
    with pytest.raises(GuaranteeError, match="'effects'"):
        run(out, faults=reached)
    result = run(out, resume=True)
    lines = small.lines(out)
    (aborted,) = [line.index for line in lines if line.kind == "study.aborted"]
    spends = [line for line in lines if line.kind == "privacy.spend" and line.body["kind"] == "effects"]
    assert len({line.body["member"] for line in spends}) == len(spends) == MEMBERS
    assert max(line.index for line in spends) < aborted  # so it would stand if nobody ever resumed
    assert set(result["privacy"]["spent"].values()) == {plan(ASKED).epsilon}
    assert len(robust(result)["members"]) == MEMBERS
    assert small.audited(out).faults == []
