"""Lies in ballots that are graphs, which no check can tell from honest ones."""

from __future__ import annotations

from causaldao.graph_ballots import known, pairs_of
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import extension
from causaldao.simulations.attacks.conduct import View, Words
from causaldao.study import Study


def forge_graph(study: Study, view: View, words: Words) -> Words:
    """Vote for each link that the own rows do not show, and for none that they do: liars whose rows are alike need not
    agree beforehand to say the same."""
    body, tensors = words
    if view.kind != "ballot" or "graph" not in body:
        return words
    forged = opposite(CausalGraph.from_json(body["graph"]), study, Knowledge.from_json(body["knowledge"]))
    nothing = "0" * len(body["absent"])
    return {**body, "graph": forged.to_json(), "absent": nothing, "abstains": ""}, tensors


def opposite(honest: CausalGraph, study: Study, own: Knowledge = NONE) -> CausalGraph:
    """The links that a pattern lacks, directed along its own order where what is known allows it; and of its links
    those alone that are required, without which no ballot is taken."""
    whole, dag = known(study, own), extension(honest)
    order = {name: k for k, name in enumerate(study.names if dag is None else dag.topological_order())}
    arrows = [tuple(sorted(pair, key=order.__getitem__)) for pair in set(pairs_of(study)) - honest.skeleton()]
    edges = [(a, b) for a, b in arrows if whole.allows(a, b)]
    return CausalGraph.dag([*edges, *whole.required], study.names)
