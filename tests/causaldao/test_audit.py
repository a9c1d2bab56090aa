"""The audit against a coordinator who signs what does not follow, and members who sign what is not so."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causaldao.audit import Audit, audit
from causaldao.errors import Finding
from causaldao.ledger.verify import Policy, verify
from causaldao.signing import SigningKey, canonical, peek, seal, sha256
from causaldao.simulations.federation import Setting, simulate
from tests.causaldao.cases import rows, study
from tests.ledger.cases import rewrite

Change = Callable[[list[dict[str, Any]]], Any]
MEMBERS = 6


@dataclass(frozen=True)
class Case:
    """A true bundle, its policy and the keys of everyone, for those who would forge it."""

    bundle: bytes
    policy: Policy
    coordinator: SigningKey
    members: dict[str, SigningKey]

    def forge(self, change: Change) -> Audit:
        """The audit of the bundle after the coordinator changed its records and signed them anew."""

        def apply(document: dict[str, Any]) -> None:
            records = [item["record"] for item in document["entries"]]
            changed = change(records)
            if changed is not None:
                document["entries"] = [{"record": record, "signature": ""} for record in changed]
                self._prune(document)

        report = verify(rewrite(self.bundle, self.coordinator, apply), self.policy)
        return audit(report)

    @staticmethod
    def _prune(document: dict[str, Any]) -> None:
        named = {name for item in document["entries"] for name in item["record"]["payloads"]}
        document["payloads"] = {name: data for name, data in document["payloads"].items() if name in named}

    def resign(self, record: dict[str, Any], **changes: Any) -> None:
        """Another statement in an entry, signed by the member whose entry it is."""
        said = replace(peek(record["body"]["envelope"].encode()), **changes)
        record["body"]["envelope"] = seal(said, self.members[said.member]).decode()


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    out = tmp_path_factory.mktemp("runs") / "run"
    data = rows(np.random.default_rng(0), 5000)
    simulate(study(), data, out, Setting(members=MEMBERS, seed=1))
    return _case(out)


def _case(out: Path) -> Case:
    nodes = sorted((out / "nodes").iterdir())
    keys = {node.name: SigningKey.load(node / "key.pem") for node in nodes}
    policy = Policy.parse((out / "policy").read_text())
    return Case((out / "ledger.bundle").read_bytes(), policy, SigningKey.load(out / "coordinator.pem"), keys)


def _of(records: list[dict[str, Any]], kind: str, number: int = 0) -> dict[str, Any]:
    return [record for record in records if record["kind"] == kind][number]


def _named(found: Audit, index: int, *words: str) -> None:
    """Some fault is of that entry and has those words."""
    shown = [str(fault) for fault in found.faults]
    assert any(text.startswith(f"entry {index}:") and all(word in text for word in words) for text in shown), shown


def test_an_honest_study_does_not_pass(case: Case) -> None:
    found = audit(verify(case.bundle, case.policy))
    assert [str(fault) for fault in found.faults] == []
    assert found.unchecked == []
    found.require()
    assert len(found.checked) >= 10
    assert case.forge(lambda records: None).faults == []


def test_a_finding_does_not_say_what_was_found(case: Case) -> None:
    def change(records: list[dict[str, Any]]) -> None:
        _of(records, "pool")["body"]["pool"]["critical"] += 1

    with pytest.raises(Finding, match="critical") as caught:
        case.forge(change).require()
    assert caught.value.exit_code == 1


def _flip_mark(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "adopt")
    mark = entry["body"]["consensus"]["marks"][0]
    mark["status"] = "contested"
    return entry["index"], ("adoption",)


def _claim_support(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "adopt")
    entry["body"]["consensus"]["marks"][0]["support"] -= 1
    return entry["index"], ("adoption", "support")


def _turn_edge(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "adopt")
    edge = entry["body"]["consensus"]["dag"]["edges"][0]
    edge["from"], edge["to"] = edge["to"], edge["from"]
    _of(records, "release")["body"]["dag"] = entry["body"]["consensus"]["dag"]
    return entry["index"], ("adoption",)


def _better_effect(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "adopt")
    entry["body"]["effects"][0]["estimate"] *= 1.001
    return entry["index"], ("effects", "estimate")


def _no_effects(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "adopt")
    entry["body"]["effects"] = []
    return entry["index"], ("effects",)


def _weigh_pool(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "pool")
    entry["body"]["pool"]["evidence"]["moments"][1][2] += 0.5
    return entry["index"], ("pool", "moments")


def _accuse(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "pool")
    entry["body"]["pool"]["accused"] = ["hospital-01"]
    return entry["index"], ("accused",)


def _propose_other(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "pool")
    entry["body"]["proposal"]["marks"][0]["z"] += 0.01
    return entry["index"], ("proposal",)


def _exclude(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "aggregate")
    entry["body"]["excluded"] = ["hospital-01"]
    return entry["index"], ("round 1", "excludes")


def _weights(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "aggregate", 1)
    entry["body"]["weights"] = entry["body"]["weights"][1:] + entry["body"]["weights"][:1]
    return entry["index"], ("round 2", "weights")


def _gram(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "aggregate")
    keep = next(k for k, weight in enumerate(entry["body"]["weights"]) if weight)
    entry["body"]["gram"][keep][keep] += 1e6
    return entry["index"], ("round 1", "Gram")


def _ragged_gram(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "aggregate")
    entry["body"]["gram"] = entry["body"]["gram"][:-1]
    return entry["index"], ("cannot be recomputed",)


def _other_result(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    _of(records, "aggregate")["body"]["result"] = sha256(b"poison")
    return _of(records, "aggregate", 1)["index"], ("round 2", "another model")


def _other_rule(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "aggregate")
    entry["body"]["rule"] = "mean"
    return entry["index"], ("study's rule",)


def _release_other_model(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "release")
    entry["body"]["model"] = sha256(b"poison")
    return entry["index"], ("released model",)


def _release_other_graph(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "release")
    entry["body"]["dag"]["edges"] = entry["body"]["dag"]["edges"][1:]
    return entry["index"], ("released graph",)


def _better_loss(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "study.training")
    entry["body"]["loss"] *= 0.9
    return entry["index"], ("loss of round 1",)


def _enlarge_roll(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "study.roll-call")
    entry["body"]["present"].append("hospital-99")
    return entry["index"], ("hospital-99",)


def _forget_present(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "study.roll-call")
    entry["body"]["present"] = entry["body"]["present"][1:]
    return entry["index"], ("roll call",)


def _borrow_approval(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "study.approved")
    entry["body"]["approvals"][0]["envelope"] = _of(records, "ballot")["body"]["envelope"]
    return entry["index"], ("approval", "hospital-01")


def _more_voters(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "study.ballots")
    entry["body"]["voters"] = entry["body"]["voters"][1:]
    return entry["index"], ("voted",)


def _overspend(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "privacy.spend")
    entry["body"]["noise_multiplier"] /= 2
    return entry["index"], ("spending", entry["body"]["member"])


def _spend_twice(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    first, second = (_of(records, "privacy.spend", k) for k in (0, 1))
    second["body"]["member"] = first["body"]["member"]
    return second["index"], ("spending", first["body"]["member"])


def _late_round(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = next(r for r in records if r["kind"] == "privacy.spend" and r["body"]["kind"] == "update")
    entry["body"]["round"] = 9
    return entry["index"], ("spending",)


def _other_study(records: list[dict[str, Any]]) -> tuple[int, tuple[str, ...]]:
    entry = _of(records, "release")
    entry["body"]["study"] = sha256(b"another")
    return entry["index"], ("of study",)


FORGERIES = [
    _flip_mark, _claim_support, _turn_edge, _better_effect, _no_effects, _weigh_pool, _accuse, _propose_other, _exclude,
    _weights, _gram, _ragged_gram, _other_result, _other_rule, _release_other_model, _release_other_graph, _better_loss,
    _enlarge_roll, _forget_present, _borrow_approval, _more_voters, _overspend, _spend_twice, _late_round, _other_study,
]  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f.__name__.strip("_"))
def test_a_coordinator_signs_what_does_not_follow(
    case: Case, forgery: Callable[..., tuple[int, tuple[str, ...]]]
) -> None:
    expected: list[tuple[int, tuple[str, ...]]] = []
    found = case.forge(lambda records: expected.append(forgery(records)))
    ((index, words),) = expected
    _named(found, index, *words)


@pytest.mark.parametrize("kind", [
    "pool", "adopt", "release", "aggregate", "study.approved", "study.roll-call", "study.ballots", "study.training",
    "study.evaluated", "study.adopted",
])  # fmt: skip
def test_an_entry_that_others_rest_on_is_left_out(case: Case, kind: str) -> None:
    dropped = _first_index(case, kind)
    found = case.forge(lambda records: [record for record in records if record["index"] != dropped])
    assert found.faults != []


def _first_index(case: Case, kind: str) -> int:
    return int(_of([item["record"] for item in json.loads(case.bundle)["entries"]], kind)["index"])


@pytest.mark.parametrize("kind", ["evidence", "ballot", "update", "privacy.spend"])
def test_a_members_word_is_left_out(case: Case, kind: str) -> None:
    dropped = _first_index(case, kind)
    found = case.forge(lambda records: [record for record in records if record["index"] != dropped])
    assert found.faults != []


def test_ballots_are_withheld_with_everything_that_rests_on_them(case: Case) -> None:
    """A coordinator who drops so many ballots that no quorum voted, and makes the rest fit."""

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = {"hospital-01", "hospital-02"}
        _of(records, "study.ballots")["body"]["voters"] = sorted(kept)
        for tally in _of(records, "adopt")["body"]["consensus"]["marks"]:
            tally["support"], tally["oppose"] = min(tally["support"], 2), 0
            tally["abstain"] = MEMBERS - tally["support"]
        return [r for r in records if r["kind"] != "ballot" or r["body"]["member"] in kept]

    found = case.forge(change)
    assert any("are needed of" in str(fault) for fault in found.faults)
    assert sum("no complaint says so" in what for what in found.unchecked) == MEMBERS - 2


@pytest.mark.parametrize(
    ("first", "second"), [("pool", "ballot"), ("adopt", "study.ballots"), ("pool", "adopt"), ("study.adopted", "adopt")]
)
def test_entries_change_places(case: Case, first: str, second: str) -> None:
    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        a, b = _of(records, first)["index"], _of(records, second)["index"]
        records[a], records[b] = records[b], records[a]
        return records

    assert case.forge(change).faults != []


@pytest.mark.parametrize(
    "kind", ["pool", "adopt", "release", "study.proposed", "study.roll-call", "aggregate", "study.closed"]
)
def test_two_entries_where_there_is_one(case: Case, kind: str) -> None:
    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        entry = _of(records, kind)
        return [*records[: entry["index"] + 1], json.loads(json.dumps(entry)), *records[entry["index"] + 1 :]]

    assert case.forge(change).faults != []


def test_the_study_is_another_than_its_hash_names(case: Case) -> None:
    for alter in (lambda d: d["consensus"].update(faulty=0), lambda d: d.update(consensus="x"), lambda d: d.clear()):

        def change(records: list[dict[str, Any]], alter: Callable[[Any], Any] = alter) -> None:
            alter(_of(records, "study.proposed")["body"]["document"])

        found = case.forge(change)
        assert any("study that its hash names" in str(fault) for fault in found.faults)


def test_a_member_votes_other_than_its_evidence(case: Case) -> None:
    """Signed by the member itself: what was signed is true to the ledger, and not to the evidence."""
    index = _first_index(case, "ballot")

    def change(records: list[dict[str, Any]]) -> None:
        body = peek(records[index]["body"]["envelope"].encode()).body
        key = sorted(body["votes"])[0]
        case.resign(
            records[index], body={**body, "votes": {**body["votes"], key: -1 if body["votes"][key] >= 0 else 1}}
        )

    found = case.forge(change)
    _named(found, index, "the ballot of hospital-01 does not follow", " - ")


def test_a_ballot_on_another_proposal_is_counted(case: Case) -> None:
    index = _first_index(case, "ballot")

    def change(records: list[dict[str, Any]]) -> None:
        body = peek(records[index]["body"]["envelope"].encode()).body
        case.resign(
            records[index], body={**body, "proposal": sha256(b"what the coordinator showed to this member only")}
        )

    _named(case.forge(change), index, "hospital-01", "none on the recorded proposal")


def test_a_members_word_stands_in_another_round(case: Case) -> None:
    index = _first_index(case, "ballot")
    _named(case.forge(lambda records: case.resign(records[index], round=7)), index, "another word")


def test_evidence_of_another_size(case: Case) -> None:
    index = _first_index(case, "evidence")

    def change(document: dict[str, Any]) -> None:
        record = document["entries"][index]["record"]
        (name,) = record["payloads"]
        data = base64.b64decode(document["payloads"].pop(name))[:-8]
        record["payloads"] = [sha256(data)]
        document["payloads"][sha256(data)] = base64.b64encode(data).decode()
        manifest = [{**record["body"]["manifest"][0], "sha256": sha256(data)}]
        record["body"]["manifest"] = manifest
        case.resign(record, digest=sha256(canonical(manifest)))

    report = verify(rewrite(case.bundle, case.coordinator, change), case.policy)
    assert any("cannot be recomputed" in str(fault) for fault in audit(report).faults)


def test_a_poisoned_start_passes_as_checked(case: Case) -> None:
    """Another first model cannot be told from rounding, so it is at least said that it was not checked."""

    def change(records: list[dict[str, Any]]) -> None:
        _of(records, "aggregate")["body"]["base"] = sha256(b"poison")

    found = case.forge(change)
    assert any("training starts from" in what for what in found.unchecked)
    assert found.faults != []  # the members' own updates name the base they were made against


def test_a_coordinate_rule_passes_as_checked(tmp_path: Path) -> None:
    asked = study(aggregation={"rule": "trimmed-mean"}, training={"rounds": 1})
    simulate(asked, rows(np.random.default_rng(0), 3000), tmp_path / "run", Setting(members=5, seed=1))
    trimmed = _case(tmp_path / "run")
    found = trimmed.forge(lambda records: None)
    assert found.faults == []
    assert any("trimmed-mean needs the updates" in what for what in found.unchecked)

    def change(records: list[dict[str, Any]]) -> None:
        _of(records, "aggregate")["body"]["excluded"] = ["hospital-01"]

    assert any("works on coordinates" in str(fault) for fault in trimmed.forge(change).faults)


def test_updates_and_losses_of_most_members_are_dropped_in_silence(case: Case) -> None:
    """A coordinator that keeps one member's word and calls it the members' loss."""

    def change(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            r for r in records
            if not (r["kind"] == "privacy.spend" and "envelope" in r["body"] and r["body"]["member"] != "hospital-01")
        ]  # fmt: skip

    assert any("evaluation of 1 members" in str(fault) for fault in case.forge(change).faults)
