"""What a coordinator must not get out of a node by the question for effects: a release under functions of its own
making, a second one, or one for which somebody else's evidence was forged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao import estimates, governance
from causaldao.budget import plan
from causaldao.client.node import Node, NodeConfig
from causaldao.client.privacy.journal import Cap, ReleaseKey
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_evidence
from causaldao.client.receipts import Receipts
from causaldao.decisions import decide_pool
from causaldao.members import Member
from causaldao.messages import Parcel, make
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.summaries import summary
from causaldao.signing import SigningKey, canonical, peek, sha256
from causaldao.study import Study
from tests.causaldao import cases
from tests.causaldao.test_estimates import DAG, ROBUST, study
from tests.client.test_node import COORD, KEY, code, request, said

ASKED = study(consensus={"faulty": 1})
NAMES = ("east", "north", "south", "up", "west")
KEYS = {name: KEY if name == "north" else SigningKey.from_seed(name.encode().ljust(32, b"k")) for name in NAMES}


def table(name: str) -> pd.DataFrame:
    return cases.rows(np.random.default_rng([ord(letter) for letter in name]), 800)


def evidence_of(name: str, asked: Study = ASKED, key: SigningKey | None = None, seed: int = 0, **said: Any) -> Parcel:
    """Evidence as that member signs it."""
    noise = NoiseSource.simulated(bytes([seed]) + name.encode().ljust(31, b"n"))
    moments = release_evidence(table(name), asked.dictionary, plan(asked).sigma, noise)
    given: dict[str, Any] = {"member": name, "kind": "evidence", "round": 0, "study": asked.hash, **said}
    return make(
        key or KEYS[name], federation="fed", body={"noise": "os"}, nonce="n", parent="", tensors={"moments": moments},
        **given,
    )  # fmt: skip


def entered(folder: Path, asked: Study = ASKED, names: tuple[str, ...] = NAMES) -> Node:
    """A node that was shown the members, and answered roll call and evidence."""
    folder.mkdir(parents=True)
    table("north").to_parquet(folder / "data.parquet")
    value = {
        "name": "north", "federation": "fed", "coordinator": COORD.public.to_text("coordinator"),
        "data": "data.parquet", "dataset": "rows", "approved": [asked.hash], "insecure_seed": 1,
        "lifetime": {"epsilon": 50.0},
    }  # fmt: skip
    node, receipts = Node(NodeConfig.parse(value, "node.toml"), KEY, folder), Receipts(folder)
    bodies = [("genesis", {"federation": "fed", "faulty": 1})]
    for number, name in enumerate(names):
        watch = SigningKey.from_seed(name.encode().ljust(32, b"w")).public
        bodies.append(("member.admit", governance.admission(Member(name, KEYS[name].public, watch), number)))
    receipts.learn([(k, canonical({"kind": kind, "body": body})) for k, (kind, body) in enumerate(bodies)])
    receipts.asked(asked.hash, "rollcall", 0, len(bodies))
    assert said(node.answer(request("rollcall", {"study": asked.to_json()}, study=asked.hash))).kind == "rollcall"
    assert said(node.answer(request("evidence", study=asked.hash))).kind == "evidence"
    return node


@dataclass
class Question:
    """What a coordinator sends: honest unless it is changed."""

    body: dict[str, Any]
    tensors: dict[str, Any]
    asked: Study = ASKED

    @property
    def parcel(self) -> Parcel:
        return request("effects", self.body, tensors=self.tensors, study=self.asked.hash)

    def copied(self) -> Question:
        return Question(
            copy.deepcopy(self.body), {name: array.copy() for name, array in self.tensors.items()}, self.asked
        )

    def row(self, name: str) -> int:
        return sorted(self.body["evidence"]).index(name)


def question(node: Node, replaced: dict[str, Parcel] | None = None, asked: Study = ASKED) -> Question:
    """Of the node's own evidence and the others'; the functions follow from whatever evidence is shown."""
    own = node.answer(request("evidence", study=asked.hash))
    parcels = {name: own if name == "north" else evidence_of(name, asked) for name in NAMES} | (replaced or {})
    evidence = {
        name: Evidence.from_release(parcel.tensors["moments"], asked.dictionary, plan(asked).sigma)
        for name, parcel in parcels.items()
    }
    weights = decide_pool(asked, evidence, len(parcels)).weights
    found = estimates.functions(asked, estimates.targets(asked, DAG, DAG), evidence, weights)
    body = {
        "members": sorted(parcels), "evidence": {name: one.envelope.decode() for name, one in parcels.items()},
        "pattern": DAG.to_json(), "dag": DAG.to_json(),
        "functions": {name: estimates.figures(estimates.of_member(found, name)) for name in parcels},
    }  # fmt: skip
    stack = np.stack([parcels[name].tensors["moments"] for name in sorted(parcels)])
    return Question(body, {"moments": stack}, asked)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Question]:
    """A node that is asked much and must answer nothing: it is the same for all that lie to it."""
    node = entered(tmp_path_factory.mktemp("lied") / "north")
    return node, question(node)


def spent(node: Node) -> list[str]:
    return [debit.key.kind for debit in node.journal.debits()]


def test_the_same_question_is_answered_twice_differently_or_spent_for_twice(tmp_path: Path) -> None:
    node = entered(tmp_path / "north")
    asked = question(node)
    first = node.answer(asked.parcel)
    assert (said(first).kind, first.tensors["sums"].shape, first.tensors["sums"].dtype) == ("effects", (1, 3), np.int64)
    digests = {name: peek(text.encode()).digest for name, text in asked.body["evidence"].items()}
    targets = estimates.targets(ASKED, DAG, DAG)
    assert said(first).body == {"base": estimates.base_of(ASKED, targets, digests, len(NAMES))}
    rounded = asked.copied()  # as another machine's linear algebra may have it
    rounded.body["functions"]["north"][0][0] *= 1 + 1e-13
    restarted = Node(node.config, node.key, node.folder)
    for again in (node.answer(asked.parcel), restarted.answer(rounded.parcel)):
        assert again.envelope == first.envelope
        assert np.array_equal(again.tensors["sums"], first.tensors["sums"])
    assert spent(node) == ["evidence", "effects"]
    (debit,) = [debit for debit in node.journal.debits() if debit.key.kind == "effects"]
    assert debit.spends == (plan(ASKED).effects,)
    other = question(node, {"south": evidence_of("south", seed=3)})
    assert code(node.answer(other.parcel)) == "refused"  # one slot has one answer
    assert spent(node) == ["evidence", "effects"]


def test_the_sums_are_of_other_functions_than_the_public_ones(tmp_path: Path) -> None:
    node = entered(tmp_path / "north")
    asked = question(node)
    sums = node.answer(asked.parcel).tensors["sums"]
    evidence = {
        name: Evidence.from_release(row, ASKED.dictionary, plan(ASKED).sigma)
        for name, row in zip(sorted(NAMES), asked.tensors["moments"], strict=True)
    }
    weights = decide_pool(ASKED, evidence, 5).weights
    (one,) = estimates.functions(ASKED, estimates.targets(ASKED, DAG, DAG), evidence, weights)
    read = summary(sums[0], one.members["north"], plan(ASKED).effects_sigma)
    assert read.estimate == pytest.approx(-1.0, abs=6 * (read.variance / read.count + read.privacy) ** 0.5)
    assert plan(ASKED).effects_sigma >= 1


def test_sums_that_were_made_as_if_of_more_members_pass_for_these(tmp_path: Path) -> None:
    """With more members that are silent the pool bears fewer liars: other weights, other functions, other sums."""
    node = entered(tmp_path / "north")
    asked = question(node)
    digests = {name: peek(text.encode()).digest for name, text in asked.body["evidence"].items()}
    true = estimates.base_of(ASKED, estimates.targets(ASKED, DAG, DAG), digests, len(NAMES))
    asked.body["members"] = [*NAMES, "zed"]
    reply = said(node.answer(asked.parcel))
    assert (reply.kind, reply.body["base"] == true) == ("effects", False)


def _functions(change: Callable[[list[float]], None]) -> Callable[[Question], None]:
    def lie(asked: Question) -> None:
        change(asked.body["functions"]["north"][0])

    return lie


def _own(asked: Question) -> None:
    asked.tensors["moments"][asked.row("north"), 2] += 1


def _other(asked: Question) -> None:
    asked.tensors["moments"][asked.row("south"), 2] += 1


def _unsigned(asked: Question) -> None:
    asked.body["evidence"]["south"] = evidence_of("south", key=COORD).envelope.decode()


def _passed_off(asked: Question) -> None:
    asked.body["evidence"]["south"] = asked.body["evidence"]["west"]
    asked.tensors["moments"][asked.row("south")] = asked.tensors["moments"][asked.row("west")]


def _of_another_study(asked: Question) -> None:
    moved = evidence_of("south", study="0" * 64)
    asked.body["evidence"]["south"] = moved.envelope.decode()
    asked.tensors["moments"][asked.row("south")] = moved.tensors["moments"]


def _stranger(asked: Question) -> None:
    text = evidence_of("zed", key=SigningKey.from_seed(b"z" * 32))
    asked.body["evidence"]["zed"], asked.body["members"] = text.envelope.decode(), [*NAMES, "zed"]
    asked.tensors["moments"] = np.vstack([asked.tensors["moments"], text.tensors["moments"]])


def _without_own(asked: Question) -> None:
    asked.tensors["moments"] = np.delete(asked.tensors["moments"], asked.row("north"), axis=0)
    del asked.body["evidence"]["north"]


def _doubled(asked: Question) -> None:
    asked.body["members"] = [*NAMES, "south"]


def _seed(asked: Question) -> None:
    asked.body["seed"] = 7


def _floats(asked: Question) -> None:
    asked.tensors["moments"] = asked.tensors["moments"].astype(np.float64)


def _another_graph(asked: Question) -> None:
    asked.body["dag"] = CausalGraph.dag([("a", "b")]).to_json()


def _no_graph(asked: Question) -> None:
    asked.body["pattern"] = {"edges": 3}


def _scaled(row: list[float]) -> None:
    row[-6] *= 1.1  # the clip: the sums would be of other values


def _aimed(row: list[float]) -> None:
    row[0] += 0.1


def _cut(row: list[float]) -> None:
    row.pop()


LIES: dict[str, tuple[str, Callable[[Question], None]]] = {
    "another clip": ("refused", _functions(_scaled)),
    "another mean": ("refused", _functions(_aimed)),
    "a number too few": ("refused", _functions(_cut)),
    "no functions": ("refused", lambda asked: asked.body["functions"].clear()),
    "own evidence altered": ("identity", _own),
    "own evidence left out": ("refused", _without_own),
    "another's evidence altered": ("identity", _other),
    "evidence that the coordinator signed": ("identity", _unsigned),
    "evidence passed off as another's": ("identity", _passed_off),
    "evidence of another study": ("identity", _of_another_study),
    "evidence of a stranger": ("identity", _stranger),
    "a member twice": ("identity", _doubled),
    "a seed": ("identity", _seed),
    "numbers that are none": ("identity", _floats),
    "a graph of other variables": ("refused", _another_graph),
    "a graph that is none": ("configuration", _no_graph),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_question_that_does_not_follow_from_the_members_words_is_paid_for(
    lie: str, kept: tuple[Node, Question]
) -> None:
    node, honest = kept
    asked, (refused, change) = honest.copied(), LIES[lie]
    change(asked)
    assert code(node.answer(asked.parcel)) == refused
    assert spent(node) == ["evidence"]


def test_a_node_answers_for_a_study_that_asks_for_no_sums_or_before_its_evidence(tmp_path: Path) -> None:
    plain = study({key: ROBUST[key] for key in ("treatment", "outcome", "adjustment")},
                  privacy={"split": {"evidence": 0.6, "training": 0.3, "evaluation": 0.1}})  # fmt: skip
    node = entered(tmp_path / "plain", plain)
    assert code(node.answer(request("effects", {}, study=plain.hash))) == "refused"
    assert spent(node) == ["evidence"]
    other = entered(tmp_path / "north")
    asked = question(other)
    late = Node(other.config, other.key, tmp_path / "late")
    late.folder.mkdir()
    assert code(late.answer(asked.parcel)) == "refused"
    assert spent(late) == []


def test_a_node_that_was_shown_no_members_believes_whoever_signed(tmp_path: Path) -> None:
    node = entered(tmp_path / "north")
    asked = question(node)
    (node.folder / "receipts.db").unlink()
    assert code(node.answer(asked.parcel)) == "refused"
    assert spent(node) == ["evidence"]


def test_what_was_debited_before_a_crash_is_debited_again(tmp_path: Path) -> None:
    node = entered(tmp_path / "north")
    asked = question(node)
    body = {key: value for key, value in asked.body.items() if key != "functions"}
    base = sha256(canonical({"body": body, "digest": peek(asked.parcel.envelope, 1 << 30).digest}))
    spend, cap = plan(ASKED).effects, node.config.lifetime
    assert spend is not None

    class PowerCut(BaseException):
        pass

    def draw() -> bytes:
        raise PowerCut

    key = ReleaseKey(ASKED.hash, "rows", "effects", 0, base)
    with pytest.raises(PowerCut):
        node.journal.release(key, [spend], Cap(8.0, 1e-5), Cap(cap.epsilon, cap.delta), draw)
    assert said(node.answer(asked.parcel)).kind == "effects"
    assert spent(node) == ["evidence", "effects"]
