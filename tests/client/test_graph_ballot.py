"""The ballot of a node in local mode: paid for twice, answered to another question, or silent without a reason."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from causaldao.budget import plan
from causaldao.client.approvals import releases
from causaldao.client.fit import check_study
from causaldao.client.node import Node
from causaldao.errors import ConfigurationError
from causaldao.graph_ballots import GraphBallot
from causaldao.messages import Parcel
from causaldao.signing import Statement
from causaldao.study import Study
from tests.causaldao.local import local_study
from tests.client import test_node as plain
from tests.simulations import small

STUDY = local_study("abc")


def _node(folder: Path, table: pd.DataFrame | None = None, *, asked: Study = STUDY, **config: Any) -> Node:
    """A node that has answered the roll call."""
    member = plain.node(folder, table, approved=[asked.hash], **config)
    assert plain.said(member.answer(plain.rollcall(asked, study=asked.hash))).kind == "rollcall"
    return member


def _request(kind: str = "ballot", body: dict[str, Any] | None = None, **changed: Any) -> Parcel:
    return plain.request(kind, body, **{"study": STUDY.hash, **changed})


def _said(member: Node, parcel: Parcel) -> Statement:
    return plain.said(member.answer(parcel))


def test_a_ballot_is_drawn_twice_or_paid_for_twice(tmp_path: Path) -> None:
    member = _node(tmp_path / "n")
    first = member.answer(_request())
    again = member.answer(_request(nonce="another"))
    restarted = Node(member.config, plain.KEY, member.folder).answer(_request())
    assert first.pack() == again.pack() == restarted.pack()
    (debit,) = member.journal.debits()
    assert (debit.key.kind, debit.spends) == ("ballot", (plan(STUDY).evidence,))
    assert dict(first.tensors) == {}
    ballot = GraphBallot.from_json(plain.said(first).body, STUDY)
    assert ballot.graph.skeleton() == {("a", "b"), ("b", "c")}
    assert ballot.noise == "simulated"


def test_a_study_of_local_ballots_is_asked_for_what_it_does_not_release(tmp_path: Path) -> None:
    member = _node(tmp_path / "n")
    for parcel in (_request("evidence"), _request("effects"), _request("update", {"model": {}}, round=1)):
        assert plain.refused(member, parcel) in ("refused", "identity")
    for body in ({"proposal": {}}, {"seed": 7}, {"insecure_seed": 7}):
        assert plain.refused(member, _request(body=body)) == "identity"
    assert plain.refused(member, _request(round=1)) == "refused"
    assert member.journal.debits() == ()
    assert _said(member, _request()).kind == "ballot"  # no refusal took the slot
    shared = plain.present(tmp_path / "shared")
    assert plain.refused(shared, plain.request("ballot", {})) == "identity"  # and the other way round


def test_rows_that_bear_no_graph_end_the_node_or_are_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scant = local_study("abc", privacy={**STUDY.to_json()["privacy"], "epsilon": 0.05})
    member = _node(tmp_path / "n", small.table(20), asked=scant)
    with caplog.at_level(logging.WARNING):
        ballot = GraphBallot.from_json(_said(member, _request(study=scant.hash)).body, scant)
    assert ballot.abstains == "data"
    assert ballot.graph.skeleton() == frozenset()
    assert "abstains (data)" in caplog.text
    assert len(member.journal.debits()) == 1


def test_knowledge_against_the_study_is_found_after_the_budget_is_spent(tmp_path: Path) -> None:
    strict = local_study("abc", knowledge={"required": [["a", "b"]]})
    member = plain.node(tmp_path / "n", approved=[strict.hash], knowledge="known.toml")
    (member.folder / "known.toml").write_text('forbidden = [["a", "b"]]')
    with pytest.raises(ConfigurationError, match="contradicts what study 'local' knows"):
        check_study(member.config, member.folder, strict)
    assert plain.refused(member, plain.rollcall(strict, study=strict.hash)) == "configuration"
    (member.folder / "known.toml").write_text('forbidden = [["a", "c"]]')
    agreed = Node(member.config, plain.KEY, member.folder)
    assert plain.said(agreed.answer(plain.rollcall(strict, study=strict.hash))).kind == "rollcall"
    (member.folder / "known.toml").write_text('forbidden = [["a", "b"]]')  # altered since
    altered = Node(member.config, plain.KEY, member.folder)
    assert plain.refused(altered, _request(study=strict.hash)) == "configuration"
    assert member.journal.debits() == ()


def test_an_owner_is_told_that_moments_are_released() -> None:
    (release,) = releases(STUDY)
    assert release["what"].startswith("ballot, once: a causal graph")
    assert "which it keeps" in release["what"]
    assert release["epsilon"] == pytest.approx(40, abs=0.1)
