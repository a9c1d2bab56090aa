"""Attacks through the client that act where they are not meant to, not at all, or otherwise when asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from causaldao.client.node import Node, NodeConfig
from causaldao.decisions import first_model
from causaldao.errors import RefusedError
from causaldao.messages import COORDINATOR, Parcel, make
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.signing import SigningKey, peek
from causaldao.simulations.attacks import ATTACKS, CRAFTS, LyingNode, attack
from causaldao.study import Study
from tests.simulations import small

COORD, KEY = SigningKey.from_seed(b"C" * 32), SigningKey.from_seed(b"N" * 32)
STUDY = small.study(faulty=1, rounds=2)
ROWS = small.table(200)
DAG = CausalGraph.dag([("a", "b"), ("b", "c")])
ON_UPDATES = [*(name for name in CRAFTS if name in ATTACKS), "flip-updates", "backdoor"]


def model(step: float = 0.0) -> tuple[dict[str, Any], dict[str, Any]]:
    """The study's first model, moved by ``step`` in every parameter, and its description."""
    evidence = Evidence.from_data(ROWS)
    tensors, meta = first_model(STUDY, evidence, DAG).state()
    moved = {n: a + np.float32(step) if n.endswith((".weight", ".bias")) else a for n, a in tensors.items()}
    return moved, meta


def opened(folder: Path, name: str | None, study: Study = STUDY, rows: pd.DataFrame = ROWS) -> Node:
    """A node in a fresh folder whose owner attacks so, or is honest, and that was at the roll call."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "data.parquet")
    value = {
        "name": "north", "federation": "fed", "coordinator": COORD.public.to_text("coordinator"),
        "data": "data.parquet", "dataset": "rows", "approved": [study.hash], "insecure_seed": 1,
        "lifetime": {"epsilon": 1e4},
    }  # fmt: skip
    config = NodeConfig.parse(value, "node.toml")
    node = Node(config, KEY, folder) if name is None else LyingNode(config, KEY, folder, attack(name).conduct(study))
    ask(node, "rollcall", {"study": study.to_json()}, study=study)
    ask(node, "evidence", {}, study=study)
    return node


def ask(
    node: Node, kind: str, body: dict[str, Any], *, round: int = 0, tensors: Any = None, study: Study = STUDY
) -> Parcel:
    return node.answer(
        make(
            COORD, federation="fed", study=study.hash, round=round, member=COORDINATOR, kind=kind, body=body,
            nonce=f"{kind} {round}", parent="", tensors=tensors,
        )
    )  # fmt: skip


def update(node: Node, round: int = 1, step: float = 0.0, study: Study = STUDY) -> Any:
    tensors, meta = model(step)
    reply = ask(node, "update", {"model": meta}, round=round, tensors=tensors, study=study)
    assert peek(reply.envelope).kind == "update", peek(reply.envelope).body
    return reply.tensors["delta"]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return opened(tmp_path_factory.mktemp("honest"), None)


@pytest.mark.parametrize("name", ON_UPDATES)
def test_an_attack_on_updates_sends_an_honest_one_or_another_shape(name: str, tmp_path: Path, honest: Node) -> None:
    liar = opened(tmp_path / "n", name)
    lie, truth = update(liar), update(honest)
    assert (lie.shape, lie.dtype) == (truth.shape, truth.dtype)
    assert not np.array_equal(lie, truth)
    assert bool(np.isfinite(lie).all()) is (name not in ("nan", "inf"))
    np.testing.assert_array_equal(update(liar), lie)
    # What was not asked of the attack stays honest: its rows, its evidence, and the loss it reports.
    pd.testing.assert_frame_equal(liar.table, honest.table)
    for kind, body, tensors in (("evidence", {}, None), ("evaluation", {"model": model()[1]}, model()[0])):
        said = [ask(node, kind, body, round=int(tensors is not None), tensors=tensors) for node in (liar, honest)]
        assert said[0].tensors.keys() == said[1].tensors.keys() != set()
        for key, value in said[0].tensors.items():
            np.testing.assert_array_equal(value, said[1].tensors[key])


def test_an_emulated_attack_is_not_the_one_of_that_name(tmp_path: Path, honest: Node) -> None:
    truth = update(honest)
    lies = {name: update(opened(tmp_path / name, name)) for name in ("zero", "sign-flip", "large-norm", "mimic")}
    assert not lies["zero"].any()
    np.testing.assert_allclose(lies["large-norm"], 1e6 * lies["sign-flip"], rtol=1e-5)
    assert np.linalg.norm(lies["mimic"]) < 5 * np.linalg.norm(truth)


def test_emulated_members_are_nothing_like_honest_ones(tmp_path: Path) -> None:
    """Where noise hides little, the honest step of a liar's own records, backwards, is the honest step backwards."""
    split = {"evidence": 0.1, "training": 0.8, "evaluation": 0.1}
    loud = small.study(faulty=1, privacy={"epsilon": 100.0, "delta": 1e-5, "split": split})
    many = small.table(2000)
    truth = update(opened(tmp_path / "honest", None, loud, many), step=0.5, study=loud)
    flipped = update(opened(tmp_path / "liar", "sign-flip", loud, many), step=0.5, study=loud)
    assert np.corrcoef(flipped, truth)[0, 1] < -0.8
    assert 0.5 < np.linalg.norm(flipped) / np.linalg.norm(truth) < 2


def test_a_liar_forgets_between_rounds_or_remembers_a_round_twice(tmp_path: Path) -> None:
    first = opened(tmp_path / "n", "clip-history")
    update(first, 1)
    before = {path.name for path in first.folder.glob("liar-*")}
    second = update(first, 2, step=0.01)
    assert len({path.name for path in first.folder.glob("liar-*")} - before) == 1
    # Another process opens the same folder: what it says in the second round rests on what it wrote in the first.
    other = opened(tmp_path / "m", "clip-history")
    update(other, 1)
    resumed = LyingNode(other.config, other.key, other.folder, attack("clip-history").conduct(STUDY))
    np.testing.assert_array_equal(update(resumed, 2, step=0.01), second)
    # Without that round there is nothing to go on from.
    assert not np.array_equal(update(opened(tmp_path / "k", "clip-history"), 2, step=0.01), second)


def test_a_backdoor_is_planted_where_everybody_sees_it(tmp_path: Path) -> None:
    liar = opened(tmp_path / "n", "backdoor")
    planted = update(liar)
    assert np.isfinite(planted).all()
    pd.testing.assert_frame_equal(liar.table, ROWS)


def test_a_silent_liar_says_something_or_is_silent_before_training(tmp_path: Path) -> None:
    liar = opened(tmp_path / "n", "drop-out")
    tensors, meta = model()
    for kind in ("update", "evaluation"):
        with pytest.raises(RefusedError, match="silent"):
            ask(liar, kind, {"model": meta}, round=1, tensors=tensors)
    assert peek(ask(liar, "close", {"result": "0" * 64}).envelope).kind == "close"


def test_a_node_declares_what_its_owner_does_not(tmp_path: Path) -> None:
    liar = opened(tmp_path / "n", "collude")
    assert liar.knowledge.adjacency_excluded("a", "c")
    assert liar.knowledge.adjacency_excluded("b", "c")
    assert not liar.knowledge.adjacency_excluded("a", "b")
    assert not opened(tmp_path / "m", "forge").knowledge
