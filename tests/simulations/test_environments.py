"""A study with environments from the roll call to its end: killed and resumed, audited, forged, shown, and refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.audit import audit
from causaldao.decisions import decide_pool
from causaldao.errors import ConfigurationError, DataError, IdentityError, MisuseError
from causaldao.ledger.verify import verify
from causaldao.models.graph import CausalGraph
from causaldao.pool import Pool
from causaldao.server.recording import State
from causaldao.server.results import _environments
from causaldao.signing import SigningKey, peek
from causaldao.simulations.cli import _members
from causaldao.simulations.federation import Setting, _pooled, simulate
from causaldao.simulations.members import open_node
from causaldao.simulations.sites import by_site
from tests.causaldao.test_audit import Case
from tests.causaldao.test_audit import _case as case_of
from tests.causaldao.test_audit import _named as named
from tests.causaldao.test_audit import _of as of
from tests.simulations import small
from tests.simulations.planted_environments import NAMES, TARGETS, federation, rows, study

ASKED = study({"plain": [], "held-b": ["b"], "mine": []}, consensus={"faulty": 0})


class Killed(Exception):
    """The coordinator's machine goes off."""


def _tables() -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Three members of each of two environments, and one that says it has its own."""
    tables, declared = federation(members=3)
    kept = {name: table for name, table in tables.items() if not name.startswith("held-d")}
    lone = rows(np.random.default_rng(9), "held-b")
    environments = {name: declared[name] for name in kept} | {"z-odd": "mine"}
    return {**kept, "z-odd": lone}, environments


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A run that was killed when the evidence had been given, and resumed."""
    out, (tables, declared) = tmp_path_factory.mktemp("runs") / "run", _tables()
    seeds = iter(f"key {number}".encode().ljust(32, b".") for number in range(100))
    setting = Setting(members=len(tables), sites=tuple(sorted(tables)))

    def kill(state: str) -> None:
        if state == "evidence":
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SigningKey, "generate", lambda: SigningKey.from_seed(next(seeds)))
        with pytest.raises(Killed):
            simulate(ASKED, tables, out, setting, environments=declared, on_state=kill)
        simulate(ASKED, tables, out, setting, environments=declared, resume=True)
    return case_of(out)


@pytest.fixture(scope="module")
def result(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((case.folder / "result.json").read_text())
    return found


def test_a_study_with_environments_loses_what_they_tell(result: dict[str, Any], case: Case) -> None:
    pattern = CausalGraph.from_json(result["graph"]["pattern"])
    assert {("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")} == pattern.directed
    assert result["graph"]["arrows"] == [["a", "b"], ["b", "c"]]  # and Meek's rules direct the rest
    assert (case.folder / "graph.html").read_text().count("Its direction comes from comparing environments") == 2
    (effect,) = result["effects"]
    assert abs(effect["estimate"] - effect["pooled"]) < 4 * effect["privacy_error"]
    assert abs(effect["pooled"] - 0.64) < 0.1
    assert effect["bound"] == 0  # with f = 0, of "plain" alone: "mine" has no targets either, but was not compared


def test_a_lone_member_is_accused_or_not_named(result: dict[str, Any], case: Case) -> None:
    assert small.status(result, "z-odd") == (
        "excluded", "not compared: 1 member of environment 'mine', the rule needs 3",
    )  # fmt: skip
    assert result["pool"]["accused"] == []
    assert result["pool"]["aside"] == {"mine": {"members": ["z-odd"], "needs": 3}}
    assert {one["name"]: (one["status"], one["effects"], len(one["members"])) for one in result["environments"]} == {
        "plain": ("compared", True, 3), "held-b": ("compared", False, 3), "mine": ("set aside", False, 1),
    }  # fmt: skip
    text = " ".join(result["warnings"])
    assert "Set aside, and not accused: z-odd." in text
    read = r"Effects are read where nothing was acted on: in 'plain', from evidence worth 1[78]\d\d records of 3 of 7 "
    assert re.search(read, text)
    assert all("evidence" not in one for one in result["pool"]["environments"].values())
    report = (case.folder / "report.html").read_text()
    for words in (
        "set aside (not an accusation)",
        "which no member&#39;s own evidence can",
        "a → b, b → c",
        "no: too few",
    ):
        assert words.replace("&#39;", "'") in report.replace("&#39;", "'")


def test_an_environment_whose_members_gave_no_evidence_is_called_nobodys() -> None:
    declared = {"a": "plain", "b": "held-b"}
    state = State(
        ASKED.hash, present=sorted(declared), pool={"environments": {"plain": {}}, "aside": {}},
        declared={name: {"environment": environment} for name, environment in declared.items()},
    )  # fmt: skip
    told = {one["name"]: (one["status"], one["members"]) for one in _environments(ASKED, state)}
    assert told == {"plain": ("compared", ["a"]), "held-b": ("silent", ["b"]), "mine": ("empty", [])}


def test_the_replay_of_an_honest_study_finds_a_fault(case: Case) -> None:
    found = audit(verify(case.bundle, case.policy))
    assert [str(fault) for fault in found.faults] == []
    assert found.unchecked == []


def test_a_node_votes_by_what_its_file_says_by_now(case: Case) -> None:
    """It declared its environment once, in its approval: a file that was altered since would spoil its ballot."""
    node = open_node(case.folder / "nodes" / "held-b-0")
    node.config = node.config.model_copy(update={"environments": {"chain": "plain"}})
    assert node._said(ASKED).voting(ASKED) == {"environment": "held-b", "targets": {"b"}}


def _record(entry: dict[str, Any], changed: Pool) -> tuple[int, tuple[str, ...]]:
    entry["body"]["pool"] = changed.to_json()
    return entry["index"], ("pool", "does not follow")


def _compare_across(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = of(records, "pool")
    return _record(entry, decide_pool(study({}), _evidence(case), 7))


def _leave_one_out(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = of(records, "pool")
    del entry["body"]["pool"]["environments"]["held-b"]
    return entry["index"], ("environments",)


def _believe_the_lone(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = of(records, "pool")
    entry["body"]["pool"]["aside"] = {}
    return entry["index"], ("aside",)


def _move(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    """A member that nobody could be compared with would rather have declared another environment, and signs so."""
    approval = next(a for a in of(records, "study.approved")["body"]["approvals"] if a["member"] == "z-odd")
    said = peek(approval["envelope"].encode())
    case.resign({"body": approval}, body={**said.body, "environment": "plain"})
    return of(records, "pool")["index"], ("the pool does not follow",)


def _empty(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    """With one member less where b is left alone nothing shows what moves it: the study should have ended."""
    approval = next(a for a in of(records, "study.approved")["body"]["approvals"] if a["member"] == "plain-0")
    said = peek(approval["envelope"].encode())
    case.resign({"body": approval}, body={**said.body, "environment": "held-b"})
    return of(records, "pool")["index"], ("b: acted on in every environment that can be compared",)


def _of_no_environment(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = of(records, "study.approved")
    said = peek(entry["body"]["approvals"][0]["envelope"].encode())
    case.resign({"body": entry["body"]["approvals"][0]}, body={**said.body, "environment": "elsewhere"})
    return entry["index"], ("an environment that the study lacks",)


def _turn_an_arrow(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = of(records, "pool")
    del entry["body"]["proposal"]["arrows"]
    return entry["index"], ("proposal",)


def _drop_an_arrow_at_adoption(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = of(records, "adopt")
    entry["body"]["consensus"]["arrows"] = []
    return entry["index"], ("adoption", "arrows")


def _oppose_at_a_target(records: list[dict[str, Any]], case: Case) -> tuple[int, tuple[str, ...]]:
    entry = next(r for r in records if r["kind"] == "ballot" and r["body"]["member"] == "held-b-0")
    said = peek(entry["body"]["envelope"].encode()).body
    case.resign(entry, body={**said, "votes": {**said["votes"], "a - b": -1}})
    return entry["index"], ("the ballot of held-b-0", "a - b")


FORGERIES = [
    _compare_across, _leave_one_out, _believe_the_lone, _move, _empty, _of_no_environment, _turn_an_arrow,
    _drop_an_arrow_at_adoption, _oppose_at_a_target,
]  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.__name__.strip("_"))
def test_environments_are_forged(case: Case, forgery: Callable[..., tuple[int, tuple[str, ...]]]) -> None:
    expected: list[tuple[int, tuple[str, ...]]] = []
    found = case.forge(lambda records: expected.append(forgery(records, case)))
    ((index, words),) = expected
    named(found, index, *words)


def _evidence(case: Case) -> Any:
    from causaldao.audit.case import Case as Entries
    from causaldao.study import Study

    report = verify(case.bundle, case.policy)
    (proposed,) = [line for line in report.entries if line.kind == "study.proposed"]
    return Entries(report, Study.from_mapping(proposed.body["document"]), proposed.index).evidence


def test_the_reference_of_two_environments_mixes_their_means() -> None:
    """Where effects are read from two, it is what all their rows give about the mean of each."""
    rng = np.random.default_rng(2)
    here, there = rows(rng, "plain", 4000), rows(rng, "plain", 4000) + np.array([0.0, 3.0, 0.0, -3.0, 0.0])
    effect = {"treatment": "b", "outcome": "d", "adjustment": [], "estimate": 0.6}
    found = _pooled(study({"plain": [], "other": []}), [here, there], effect)
    assert found == pytest.approx(0.64, abs=0.05)
    assert _pooled(study({}), [pd.concat([here, there])], effect) < 0


def test_members_that_declare_nothing_are_simulated(tmp_path: Path) -> None:
    tables, declared = federation(members=2)
    setting = Setting(members=6)
    for wrong in ({}, {**declared, "plain-0": "hot"}, {**declared, "nobody": "plain"}):
        with pytest.raises(ConfigurationError, match="declares one of its environments, plain, held-b, held-d"):
            simulate(study(), tables, tmp_path / "run", setting, environments=wrong)
    with pytest.raises(MisuseError, match="has no environments"):
        simulate(study({}), tables, tmp_path / "run", setting, environments=declared)
    assert not (tmp_path / "run").exists()


def _table() -> pd.DataFrame:
    tables, declared = federation(members=2)
    return pd.concat([t.assign(site=name, condition=declared[name]) for name, t in tables.items()])


def test_a_site_has_rows_of_two_environments() -> None:
    table = _table()
    parts, declared = by_site(table, "site", "condition")
    assert sorted(parts) == sorted(declared)
    assert list(parts["plain-0"].columns) == list(NAMES)
    assert declared["held-b-1"] == "held-b"
    assert by_site(table.drop(columns="condition"), "site")[1] == {}
    mixed = table.assign(condition=np.where(np.arange(len(table)) == 0, "held-b", table["condition"]))
    for wrong, site, words in (
        (mixed, "site", "1 site.s. have rows of more than one environment; plain-0 of held-b and plain"),
        (table, "clinic", "no column 'clinic'"),
        (table.assign(condition=None), "site", "'condition' is empty in 3600 rows"),
    ):
        with pytest.raises(DataError, match=words):
            by_site(wrong, site, "condition")
    with pytest.raises(IdentityError, match="St Mary"):
        by_site(table.assign(site="St Mary"), "site")


def test_what_a_site_does_not_have_becomes_the_middle_of_its_bounds(tmp_path: Path) -> None:
    """A variable that is empty at a site is lacking there; whether the study lets it, and gaps, are seen before."""
    table = _table().drop(columns="condition")
    table.loc[table["site"] == "plain-0", "a"] = None
    parts, _ = by_site(table, "site")
    assert list(parts["plain-0"].columns) == list("bcde")
    assert list(parts["plain-1"].columns) == list(NAMES)
    lacking = study({}, members={"n_min": 100, "n_max": 5000, "may_lack": ["a"]})
    assert _members(lacking, table, "site", "", None)[1] == {}
    with pytest.raises(DataError, match="plain-0: column 'a': the column is missing"):
        _members(study({}), table, "site", "", None)
    table.loc[(table["site"] == "held-b-0") & (table["b"] > 2), "b"] = None
    with pytest.raises(DataError, match="held-b-0: column 'b': no value in"):
        _members(lacking, table, "site", "", None)
    effect = {"treatment": "b", "outcome": "d", "adjustment": ["a"], "estimate": 0.6}
    assert _pooled(lacking, [parts["plain-0"]], effect) is None
    assert _pooled(lacking, list(parts.values()), effect) is not None


def test_a_study_that_cannot_be_carried_spends_privacy_before_it_ends(tmp_path: Path) -> None:
    """Enough members, and too few in each environment: the roll call says so, and no journal has a line. What does not
    go together on the command line is refused."""
    (tmp_path / "study.toml").write_text(_toml())
    _table().to_csv(tmp_path / "rows.csv", index=False)

    def run(*options: str) -> Any:
        given = ["simulate", str(tmp_path / "study.toml"), "--data", str(tmp_path / "rows.csv"), "--out"]
        return CliRunner().invoke(app, [*given, str(tmp_path / "run"), *options, "--json"])

    both = ("--site-column", "site", "--environment-column", "condition")
    ended = run(*both)
    assert ended.exit_code == 13
    assert json.loads(ended.stdout)["error"]["message"].startswith("No environment has enough members")
    assert small.debits(tmp_path / "run") == {f"{held}-{k}": [] for held in TARGETS for k in range(2)}
    assert run("--environment-column", "condition").exit_code == 2
    assert run(*both, "--members", "5").exit_code == 2
    checked = CliRunner().invoke(app, ["study", "check", str(tmp_path / "study.toml"), "--members", "9"])
    assert "plain (acts on nothing, effects are read there), held-b (acts on b)" in checked.stderr + checked.stdout
    assert "each needs 5 members who declare it; 6, if those who may lie can declare another" in checked.output
    assert "9 members cannot make all 3 environments comparable" in checked.output


def test_a_node_is_told_too_late_that_it_declares_nothing(tmp_path: Path) -> None:
    """What it would declare stands in the dry run and before the decision; what is missing is an error, with the line
    to write."""
    (tmp_path / "study.toml").write_text(_toml())
    rows(np.random.default_rng(0), "held-b").to_csv(tmp_path / "rows.csv", index=False)
    begin = 'name = "north"\ndataset = "chain"\ndata = "rows.csv"\n[lifetime]\nepsilon = 30.0\ndelta = 1e-5\n'
    file, check = tmp_path / "node.toml", ["node", "dry-run", str(tmp_path), "--study", str(tmp_path / "study.toml")]
    file.write_text(begin)
    found = CliRunner().invoke(app, check)
    assert found.exit_code == 10
    assert "Write under [environments] chain = 'plain'" in found.output
    look = ["node", "approve", str(tmp_path), str(tmp_path / "study.toml")]
    assert "the node refuses the study, approved or not" in CliRunner().invoke(app, look, input="n\n").output
    file.write_text(begin + '[environments]\nchain = "held-b"\n')
    said = "its records are of environment 'held-b', which acts on b"
    assert f"it would declare: {said}" in CliRunner().invoke(app, check).output
    assert f"told to all of them by the approval: {said}" in CliRunner().invoke(app, look, input="n\n").output


def test_a_liar_among_named_sites_is_nobody(tmp_path: Path) -> None:
    setting = Setting(members=3, liars=1, sites=("a", "b", "c"))
    assert set(setting.liar_names) < {"a", "b", "c"}
    assert Setting(**json.loads(json.dumps(setting.to_json()))) == setting
    assert "sites" not in Setting(members=3).to_json()
    with pytest.raises(MisuseError, match="members = 4, but 3 sites are named"):
        Setting(members=4, sites=("a", "b", "c"))


def _toml() -> str:
    value = study().to_json()
    value["discovery"] = {"restarts": 2}
    lines = []
    for table, kept in (("study", value["study"]), ("consensus", {"faulty": 1}), ("training", {"rounds": 0})):
        lines += [f"[{table}]", *(f"{key} = {json.dumps(told)}" for key, told in kept.items())]
    lines += ["[discovery]", "restarts = 2", "[privacy]", "epsilon = 20.0", "delta = 1e-5"]
    lines += ["split = { evidence = 1.0, training = 0.0, evaluation = 0.0 }"]
    for name in NAMES:
        lines += ["[[variables]]", f'name = "{name}"', 'kind = "continuous"', "bounds = [-6.0, 6.0]"]
    for one in value["environments"]:
        lines += ["[[environments]]", f"name = {json.dumps(one['name'])}", f"targets = {json.dumps(one['targets'])}"]
    lines += ["[[effects]]", 'treatment = "b"', 'outcome = "d"', "adjustment = []"]
    return "\n".join(lines)
