"""What a node makes of the question for effects: whose the evidence is, and the functions, computed anew.

The coordinator shows each member's signed evidence, the adopted graph and the functions that it means. The node checks
that every piece of evidence is signed by a member that it knows, that its own is what it released, and that the
functions follow: else it refuses, and nothing is spent. It cannot check the adoption, which rests on ballots that it is
not shown; another graph would ask another question, at the same cost and with the same bound on what one record does,
and the audit shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from causaldao import estimates
from causaldao.budget import plan
from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import release_summary
from causaldao.decisions import decide_pool
from causaldao.errors import IdentityError, RefusedError
from causaldao.estimates import Functions
from causaldao.members import Roster
from causaldao.messages import Parcel, fields
from causaldao.models.discovery.evidence import Dictionary, Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.summaries import Nuisances
from causaldao.signing import Tensors, digest, peek
from causaldao.study import Study


def asked(
    study: Study, body: Mapping[str, Any], tensors: Tensors, known: Roster, own: Parcel
) -> tuple[tuple[Functions, ...], str]:
    """The functions of each effect and the digest of the question; ``own`` is the evidence that this node released.

    Raises
    ------
    IdentityError
        evidence that no known member signed, or a question that is not in its form.
    RefusedError
        this node's evidence is not what it released, or the functions do not follow from what is shown.
    """
    fields(body, {"members": list, "evidence": dict, "pattern": dict, "dag": dict, "functions": dict})
    triangles, digests = _signed(study, body, tensors, known)
    name = peek(own.envelope).member
    if name not in triangles or not np.array_equal(triangles[name], own.tensors["moments"]):
        raise RefusedError("The evidence that is shown as this node's is not what it released.")
    sigma = plan(study).sigma
    evidence = {who: Evidence.from_release(row, study.dictionary, sigma) for who, row in triangles.items()}
    targets = estimates.targets(study, graph_of(body["pattern"], study), graph_of(body["dag"], study))
    weights = decide_pool(study, evidence, len(body["members"])).weights
    found = estimates.functions(study, targets, evidence, weights)
    mine = estimates.figures(estimates.of_member(found, name))
    if not estimates.same_figures(body["functions"].get(name), mine):
        raise RefusedError(
            "The functions under which this node's records are to be read do not follow from the members' evidence."
        )
    return found, estimates.base_of(study, targets, digests, len(body["members"]))


def released(
    rows: pd.DataFrame, dictionary: Dictionary, mine: Sequence[Nuisances | None], sigma: int, noise: NoiseSource
) -> NDArray[np.int64]:
    """(k, 3) the noisy sums of each effect; a row of zeros for one that this node is not asked."""
    sums = np.zeros((len(mine), 3), dtype=np.int64)
    for k, member in enumerate(mine):
        if member is not None:
            sums[k] = release_summary(rows, dictionary, member, sigma, noise)
    return sums


def _signed(
    study: Study, body: Mapping[str, Any], tensors: Tensors, known: Roster
) -> tuple[dict[str, NDArray[np.int64]], dict[str, str]]:
    """Each member's evidence and the digest that it signed. Rows of ``moments`` are in the order of names."""
    members, envelopes, size = body["members"], body["evidence"], len(study.names) + 1
    shape = (len(envelopes), size * (size + 1) // 2)
    if not set(envelopes) <= set(known.names) & set(map(str, members)) or len(set(map(str, members))) != len(members):
        raise IdentityError("The question shows evidence of others than the members that this node knows.")
    if set(tensors) != {"moments"} or tensors["moments"].dtype != np.int64 or tensors["moments"].shape != shape:
        raise IdentityError("The evidence that is shown does not have the form that the study fixes.")
    rows, digests = {}, {}
    for name, row in zip(sorted(envelopes), tensors["moments"], strict=True):
        said = known.open(str(envelopes[name]).encode(), study=study.hash, round=0, kind="evidence")
        if said.member != name or said.digest != digest({"moments": row}):
            raise IdentityError(f"The evidence that is shown as {name}'s is not what it signed.")
        rows[name], digests[name] = row, said.digest
    return rows, digests


def graph_of(value: Mapping[str, Any], study: Study) -> CausalGraph:
    """A graph that was sent, over the study's variables."""
    graph = CausalGraph.from_json(value)
    if set(graph.nodes) != set(study.names):
        raise RefusedError("The graph that was sent speaks of other variables than the study.")
    return graph
