"""A study with an adopted graph on a coordinator's ledger, as far as edits look at it, for the tests."""

from __future__ import annotations

from typing import Any

from causaldao.edits import Edit, edited
from causaldao.ledger.entry import Entry
from causaldao.models.graph import CausalGraph
from causaldao.server.home import Home
from tests.causaldao.cases import study as small
from tests.server.homes import NOW

NAMES = ("age", "dose", "response", "smoking")
STUDY = small(
    study={"name": "graphs"},
    variables=[{"name": name, "kind": "continuous", "bounds": [-4, 4]} for name in NAMES],
    effects=[{"treatment": "dose", "outcome": "response", "adjustment": ["age"]}],
)
GRAPH = CausalGraph.cpdag([("age", "dose"), ("smoking", "dose"), ("dose", "response")], [], NAMES)


def adopt(home: Home) -> None:
    """Proposed, and a graph adopted; no entry between them."""
    marks = [
        {"kind": "adjacency", "nodes": list(pair), "strength": 0.2, "support": 3, "oppose": 1, "abstain": 0,
         "status": "adopted"}
        for pair in sorted(GRAPH.skeleton())
    ]  # fmt: skip
    consensus = {"pattern": GRAPH.to_json(), "dag": GRAPH.to_json(), "marks": marks, "stands": False}
    with home.log() as log:
        log.append([
            Entry("study.proposed", {"study": STUDY.hash, "document": STUDY.to_json()}),
            Entry("adopt", {"study": STUDY.hash, "consensus": consensus, "effects": []}),
        ])  # fmt: skip
    home.registry.propose(STUDY.hash, STUDY.name, STUDY.to_json(), NOW)


def edit(change: str, cause: str, effect: str, proposer: str = "", reason: str = "known") -> dict[str, Any]:
    """The body of an edit, without votes; what it does is what it does to the graph as it was adopted."""
    named = {"proposer": proposer} if proposer else {}
    does = edited(GRAPH, GRAPH, [Edit(cause, effect, change)]).steps[0].digest
    return {"study": STUDY.hash, "edge": [cause, effect], "change": change, "reason": reason, "does": does, **named}
