"""A study some of whose members lack variables, from the roll call to its end: who is named, what is kept, what an
audit finds; and one that too few can answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldao.client.fit import check_study
from causaldao.client.node import NodeConfig
from causaldao.client.overview import review
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import exact_moments, release_evidence
from causaldao.declared import held
from causaldao.dictionary import Offered, SiteDictionary, compare
from causaldao.errors import ConfigurationError, DataError, GuaranteeError
from causaldao.ledger.log import Log
from causaldao.server.progress import Event
from causaldao.signing import SigningKey, Tensors, peek, seal
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.federation import Setting, simulate
from tests.causaldao.test_audit import Case
from tests.causaldao.test_audit import _case as case_of
from tests.causaldao.test_audit import _named as named
from tests.causaldao.test_audit import _of as of
from tests.simulations import small
from tests.simulations.lacking import LACKS, MEMBERS, NAMES, study, tables

ASKED = study(epsilon=40.0)
LIAR, LEAKS, WITHDRAWN = MEMBERS[7], MEMBERS[0], MEMBERS[4]
SETTING = Setting(members=len(MEMBERS), seed=1)


def _everything(kind: str, honest: Tensors) -> Tensors:
    """Evidence with moments of what its member said it lacks."""
    return {"moments": honest["moments"] + 1} if kind == "evidence" else honest


CONDUCTS = {LIAR: Conduct(rows=lambda table: table.assign(e=-table["e"])), LEAKS: Conduct(tensors=_everything)}


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run was cut off when the evidence was pooled and before that was recorded, and then resumed."""
    out, data = tmp_path_factory.mktemp("lacking") / "run", tables(np.random.default_rng(3), LACKS, 600)

    def cut(event: Event) -> None:
        if event.phase == "pool":
            raise PowerCut

    with pytest.raises(PowerCut):
        simulate(ASKED, data, out, SETTING, conducts=CONDUCTS, progress=cut)
    return out, simulate(ASKED, data, out, SETTING, conducts=CONDUCTS, resume=True)


@pytest.fixture(scope="module")
def case(ran: tuple[Path, dict[str, Any]]) -> Case:
    return case_of(ran[0])


def test_a_study_with_lacking_members_does_not_end_or_names_the_wrong_ones(ran: tuple[Path, dict[str, Any]]) -> None:
    out, result = ran
    said = {member["name"]: member for member in result["members"]}
    assert {name: tuple(one["lacks"]) for name, one in said.items() if one["lacks"]} == LACKS
    assert result["pool"]["accused"] == [LIAR]
    assert said[LEAKS]["status"] == "quarantined"
    assert "moments of c, which its member said it lacks" in said[LEAKS]["reason"]
    assert {one["status"] for name, one in said.items() if name not in (LIAR, LEAKS)} <= {"ok", "excluded"}
    assert {frozenset((edge["from"], edge["to"])) for edge in result["graph"]["pattern"]["edges"]} == {
        frozenset(pair) for pair in ("ab", "bc", "ad", "ce", "de", "ef")
    }
    stated = result["effects"][0]
    assert stated["interval"][0] < 0.5 < stated["interval"][1]
    assert result["pool"]["discount"] > 1
    assert any("Not every member has c, d" in warning for warning in result["warnings"])
    assert "<th>Does not have</th>" in (out / "report.html").read_text()
    assert all(spends[0][0] == "evidence" and len(spends) == 1 for spends in small.debits(out).values())


def test_its_audit_finds_fault_or_leaves_out_a_check(ran: tuple[Path, dict[str, Any]]) -> None:
    found = small.audited(ran[0])
    assert found.faults == []
    assert found.unchecked == []


def test_a_member_votes_on_what_it_lacks(case: Case, ran: tuple[Path, dict[str, Any]]) -> None:
    votes = {
        line.body["member"]: peek(line.body["envelope"].encode()).body["votes"]
        for line in small.lines(ran[0])
        if line.kind == "ballot"
    }
    assert votes[WITHDRAWN]["a - d"] == votes[WITHDRAWN]["d - e"] == 0
    assert votes[MEMBERS[8]]["a - d"] == votes[WITHDRAWN]["a - b"] == 1


def _approve(case: Case, records: list[dict[str, Any]], lacks: Mapping[str, list[str]]) -> int:
    """Approvals in which members say that they lack something else, signed by them."""
    entry = of(records, "study.approved")
    for approval in entry["body"]["approvals"]:
        if approval["member"] in lacks:
            said = peek(approval["envelope"].encode())
            body = {**said.body, "lacks": lacks[approval["member"]]}
            signed = seal(type(said)(**{**vars(said), "body": body}), case.members[said.member])
            approval["envelope"] = signed.decode()
    return int(entry["index"])


def test_evidence_of_what_a_member_lacks_passes(case: Case) -> None:
    found = case.forge(lambda records: _none(_approve(case, records, {MEMBERS[8]: ["c"]})))
    index = next(r.index for r in case_lines(case) if r.kind == "evidence" and r.body["member"] == MEMBERS[8])
    named(found, index, f"evidence of {MEMBERS[8]} has moments of c")


def test_a_pool_that_counts_a_member_for_what_it_lacks_passes(case: Case) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        del of(records, "pool")["body"]["pool"]["lacks"][MEMBERS[1]]

    named(case.forge(change), _index(case, "pool"), "pool does not follow", "lacks")


def test_what_a_member_lacks_can_be_altered_afterwards(case: Case) -> None:
    found = case.forge(lambda records: _none(_approve(case, records, {MEMBERS[1]: []})))
    named(found, _index(case, "pool"), "pool does not follow")


def test_a_study_that_should_have_ended_at_the_roll_call_passes(case: Case) -> None:
    found = case.forge(lambda records: _none(_approve(case, records, {name: ["c", "d"] for name in MEMBERS[5:]})))
    named(found, _index(case, "study.roll-call"), "should have ended there", "c: ")


def test_a_pool_worth_more_than_it_is_passes(case: Case) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        pooled = of(records, "pool")["body"]["pool"]
        pooled["discount"] = 1.0

    named(case.forge(change), _index(case, "pool"), "discount")


def test_an_effect_of_the_whole_pool_passes(case: Case) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        effect = of(records, "adopt")["body"]["effects"][0]
        effect["standard_error"] *= 0.9

    named(case.forge(change), _index(case, "adopt"), "effects do not follow")


def _none(index: int) -> None:
    """What a change returns that puts no records in place of the changed."""


def case_lines(case: Case) -> Any:
    return small.lines(case.folder)


def _index(case: Case, kind: str) -> int:
    return next(int(line.index) for line in case_lines(case) if line.kind == kind)


def test_a_variable_that_nobody_may_be_without_costs_privacy_before_the_study_ends(tmp_path: Path) -> None:
    """Too few have c: the study ends at the roll call, again when it is resumed, and nobody has spent anything."""
    lacks, few = {MEMBERS[0]: ("c",), MEMBERS[1]: ("c", "d")}, MEMBERS[:6]
    data = tables(np.random.default_rng(4), lacks, 60, few)
    for resume in (False, True):
        with pytest.raises(GuaranteeError, match=r"have c: 4. It takes 5 for faulty = 1") as caught:
            simulate(ASKED, data, tmp_path / "run", Setting(members=len(few)), resume=resume)
        assert caught.value.exit_code == 13
    assert not list((tmp_path / "run" / "nodes").glob("*/journal.db"))
    key = SigningKey.load(tmp_path / "run" / "coordinator.pem")
    with Log.open(f"sqlite:///{tmp_path / 'run' / 'ledger.db'}", key, lambda: "") as log:
        kinds = [entry.kind for entry in log.entries()]
    assert kinds.count("study.aborted") == 2
    assert "evidence" not in kinds


# The node


def node(folder: Path, columns: str, **config: Any) -> tuple[NodeConfig, Path]:
    tables(np.random.default_rng(5), {}, 300, ("north",))["north"][list(columns)].to_parquet(folder / "data.parquet")
    coordinator = SigningKey.from_seed(b"C" * 32).public.to_text("coordinator")
    value = {
        "name": "north", "federation": "fed", "coordinator": coordinator,
        "data": "data.parquet", "dataset": "rows", "lifetime": {"epsilon": 50.0}, **config,
    }  # fmt: skip
    return NodeConfig.parse(value, "node.toml"), folder


def test_a_column_that_is_not_there_is_taken_for_lacking_unless_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_study(*node(tmp_path, "abdef"), ASKED)
    (problem,) = caught.value.problems
    assert 'lacks = ["c"]' in problem
    assert check_study(*node(tmp_path, "abdef", lacks=["c"]), ASKED) == ()
    with pytest.raises(DataError) as caught:
        check_study(*node(tmp_path, "bcdef", lacks=["a", "c"]), ASKED)
    assert "which this study does not allow" in caught.value.problems[0]


def test_a_mapping_without_what_is_lacking_does_not_fit(tmp_path: Path) -> None:
    mapping = {name: {"column": name, "kind": "continuous"} for name in "abdef"}
    config, folder = node(tmp_path, "abdef", lacks=["c"], mapping=mapping)
    assert check_study(config, folder, ASKED) == ()
    shown = review(config, folder, ASKED)
    assert (shown["mismatches"], shown["declares"]) == ([], ["it lacks c, which is not read"])
    config, folder = node(tmp_path, "abdef", mapping=mapping)
    (mismatch,) = review(config, folder, ASKED)["mismatches"]
    assert 'lacks = ["c"]' in mismatch
    site = SiteDictionary("fed", "north", tuple(Offered(name, "continuous") for name in "abdef"))
    assert compare(site, ASKED) == [
        "variable 'c': not offered; the study lets a member lack it, and its node.toml must say so"
    ]


def test_a_column_that_is_there_and_declared_lacking_is_read_or_passed_over_in_silence(tmp_path: Path) -> None:
    config, folder = node(tmp_path, NAMES, lacks=["c"])
    (warning,) = check_study(config, folder, ASKED)
    assert "column 'c' is there" in warning
    assert "not read" in warning


def test_a_node_that_lacks_everything_takes_part(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="none of the variables"):
        check_study(*node(tmp_path, "abcdef", lacks=list(NAMES)), study(may_lack=NAMES))


def test_what_is_lacking_leaves_a_trace_in_the_release_or_lengthens_a_row() -> None:
    table = tables(np.random.default_rng(6), {}, 50, ("north",))["north"]
    triangle = release_evidence(table, ASKED.encoding, 1000, NoiseSource.simulated(bytes(32)), ("c", "d"))
    rows, columns = np.triu_indices(7)
    lacking = np.isin(rows, (3, 4)) | np.isin(columns, (3, 4))
    assert triangle.shape == (28,)
    assert (triangle[lacking] == 0).all()
    assert (triangle[~lacking] != 0).all()
    other = table.assign(c=5.0, d=-5.0)
    again = release_evidence(other, ASKED.encoding, 1000, NoiseSource.simulated(bytes(32)), ("c", "d"))
    assert (again == triangle).all()
    one = table.iloc[[0]] * 100  # clipped to the bounds in every variable
    whole, less = exact_moments(one, ASKED.encoding), exact_moments(one, held(ASKED.encoding, ("c", "d")))
    assert np.trace(less) == np.trace(whole) * 5 / 7
    assert exact_moments(one, held(ASKED.encoding, tuple("abcde"))).shape == (2, 2)
