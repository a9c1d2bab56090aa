"""Ballots of local mode: each is the graph that a member found in its own noisy moments, which nobody else ever sees.

A member draws the moments that it would release in shared mode, by the same mechanism and at the whole ε, keeps them to
itself, and signs what discovery finds in them: post-processing of one Gaussian release. Members cannot know the marks
that the others' graphs have, so a ballot is the graph, and beside it the adjacencies that the member *rules out*: those
that its graph lacks and of which an equivalence test at the study's level says that the partial correlation given the
parents of the later end is below `NEGLIGIBLE` in size. Both errors, of sampling and of privacy, are counted. What a
graph merely lacks is no opposition.

Nobody can recompute a ballot: what is behind it was never shown. What can be checked is its form: a graph over the
study's variables that has a causal order and obeys the study's knowledge. Counting them is the same for everybody.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Any

from causaldao.ballots import Ballot, Proposal
from causaldao.consensus import Consensus, ConsensusRule, adopt, local_ballots, marks_held
from causaldao.decisions import proposal_from
from causaldao.errors import CausalDAOError, ConfigurationError, DataError, IdentityError
from causaldao.logs import visible
from causaldao.messages import fields
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph, Pair
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.pattern import extension
from causaldao.signing import canonical
from causaldao.study import Study

NEGLIGIBLE = 0.1  # a partial correlation below this is none: the default of `study check --find`
MOST_MARKS = 10_000  # adjacencies and colliders of one graph
MOST_TRIPLES = 1_000_000  # pairs of neighbours of one node, over all nodes: what it takes to find the colliders
MOST_BYTES = 700_000  # of a ballot's canonical JSON: in an envelope it stays below what is read of a reply
MOST_LISTED = 5_000  # marks that an adoption records
TOO_LARGE = "too-large"
_MAX_REASON = 200  # characters
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class GraphBallot:
    """A member's pattern over the study's variables, the pairs (a, b), a < b, that it rules out, and what it declares
    to know, which is public.

    ``abstains`` is "" or the code of why the member's moments bore no graph: then the graph has what is known, and no
    more. ``noise`` says where the member's noise comes from: "os", or "simulated" in a simulation.
    """

    graph: CausalGraph
    absent: frozenset[Pair] = frozenset()
    knowledge: Knowledge = NONE
    abstains: str = ""
    noise: str = "os"

    def to_json(self, study: Study) -> dict[str, Any]:
        """The words that are signed. ``absent`` is one bit for each pair of the study's names, sorted, as hexadecimal
        digits, so that its size says nothing."""
        bits = "".join("1" if pair in self.absent else "0" for pair in pairs_of(study))
        digits = "".join(f"{int(bits[k : k + 4].ljust(4, '0'), 2):x}" for k in range(0, len(bits), 4))
        return {
            "graph": self.graph.to_json(), "absent": digits, "knowledge": self.knowledge.to_json(),
            "abstains": self.abstains, "noise": self.noise,
        }  # fmt: skip

    @staticmethod
    def from_json(value: Any, study: Study) -> GraphBallot:
        """Read a ballot of the study; an IdentityError says what is wrong with it, whatever it is."""
        try:
            return _read(value, study)
        except IdentityError:
            raise
        except (CausalDAOError, *_UNREADABLE) as error:
            why = visible(str(error)[:_MAX_REASON])  # it may quote names that a terminal would obey
            raise IdentityError(f"The ballot's graph cannot be taken: {why}") from error


def pairs_of(study: Study) -> list[Pair]:
    """All pairs of the study's variables, a < b, in order."""
    return list(combinations(sorted(study.names), 2))


def known(study: Study, own: Knowledge) -> Knowledge:
    """What the study knows and what a member declares besides.

    Raises
    ------
    ConfigurationError
        the two contradict each other, or the member's names variables that the study has not.
    """
    own.check(study.names)
    try:
        return study.prior.merge(own)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"What is declared to be known contradicts what study {study.name!r} knows, to which its members agreed: "
            f"mend the knowledge file, or decline the study. {error}",
            problems=error.problems,
        ) from error


def ballot_from(study: Study, evidence: Evidence, own: Knowledge = NONE) -> GraphBallot:
    """The ballot of a member with this noisy ``evidence``, by the study's method, under all that is known.

    What the evidence cannot bear, or no reader would take, becomes an abstention with its reason: a ballot is paid for
    before it is known whether it says anything. So does whatever else goes wrong on this noise: a node that failed
    would have told so much of it, and would draw anew when it is asked again.
    """
    knowledge = known(study, own)
    try:
        ballot = _found(study, evidence, own, knowledge)
        if not _within(ballot.graph) or len(canonical(ballot.to_json(study))) > MOST_BYTES:
            return abstention(study, own, TOO_LARGE)
        _check_graph(ballot.graph, study, knowledge)
    except Exception as error:
        return abstention(study, own, error.code if isinstance(error, CausalDAOError) else DataError.code)
    return ballot


def abstention(study: Study, own: Knowledge, why: str) -> GraphBallot:
    """A ballot of what is known alone."""
    return GraphBallot(_required(study, known(study, own)), frozenset(), own, why)


def votes_of(study: Study, ballots: Mapping[str, GraphBallot], eligible: int) -> tuple[Proposal, dict[str, Ballot]]:
    """The marks of the members' graphs that a record lists, and how each member votes on each."""
    graphs = {name: ballot.graph for name, ballot in ballots.items()}
    listed, _ = _listed(graphs, _rule(study, eligible).needed)
    return local_ballots(graphs, {name: ballot.absent for name, ballot in ballots.items()}, listed)


def votes_cast(study: Study, said: Mapping[str, Any], eligible: int) -> dict[str, dict[str, int]]:
    """How each member voted, by the key of the mark: +1, 0 or -1; ``said`` are the bodies of the recorded ballots, of
    either way to vote."""
    if not study.local:
        return {name: dict(body["votes"]) for name, body in said.items()}
    graphs = {name: GraphBallot.from_json(body, study) for name, body in said.items()}
    return {name: dict(ballot.votes) for name, ballot in votes_of(study, graphs, eligible)[1].items()}


def decide_local_adoption(study: Study, ballots: Mapping[str, GraphBallot], eligible: int) -> Consensus:
    """Adoption under the study's threshold, fault bound and knowledge, by the members of the roll call."""
    rule = _rule(study, eligible)
    graphs = {name: ballot.graph for name, ballot in ballots.items()}
    listed, left = _listed(graphs, rule.needed)
    proposal, votes = local_ballots(graphs, {name: ballot.absent for name, ballot in ballots.items()}, listed)
    nodes = CausalGraph.cpdag(nodes=study.names)  # also where nobody voted
    return replace(adopt(replace(proposal, pattern=nodes), votes, rule), unlisted=left)


def _rule(study: Study, eligible: int) -> ConsensusRule:
    return ConsensusRule(study.consensus.threshold, study.consensus.faulty, eligible, study.prior, local=True)


def _listed(graphs: Mapping[str, CausalGraph], enough: int) -> tuple[list[tuple[str, ...]], int]:
    """The marks to be recorded, and how many are not: all that ``enough`` members have, and then the most supported up
    to `MOST_LISTED`, so that one member cannot swamp the record with marks that nobody else has."""
    support = Counter(mark for graph in graphs.values() for mark in marks_held(graph))
    ranked = sorted(support, key=lambda mark: (-support[mark], len(mark), mark))
    number = max(sum(count >= enough for count in support.values()), MOST_LISTED)
    return ranked[:number], max(len(ranked) - number, 0)


def _found(study: Study, evidence: Evidence, own: Knowledge, knowledge: Knowledge) -> GraphBallot:
    proposal = proposal_from(study, evidence, knowledge)
    graph = proposal.pattern.with_nodes(study.names)
    dag = extension(graph)
    if dag is None:
        raise DataError("The graph that was found has no causal order.")
    place = {name: k for k, name in enumerate(dag.topological_order())}
    critical = NormalDist().inv_cdf(1 - study.consensus.level / 2)
    absent = set()
    for a, b in sorted(set(pairs_of(study)) - graph.skeleton()):
        if knowledge.adjacency_excluded(a, b):
            absent.add((a, b))
            continue
        given = sorted(dag.parents(max(a, b, key=place.__getitem__)))
        along = proposal.reading.along(evidence, a, b, given)
        test = proposal.reading.test(evidence, a, b, given, along)
        if abs(test.z) + critical * test.standard_error < math.atanh(NEGLIGIBLE):
            absent.add((a, b))
    return GraphBallot(graph, frozenset(absent), own)


def _read(value: Any, study: Study) -> GraphBallot:
    if not isinstance(value, Mapping):
        raise IdentityError(f"Expected a ballot, but got a {type(value).__name__}.")
    fields(value, {"graph": dict, "absent": str, "knowledge": dict, "abstains": str, "noise": str})
    if value["noise"] not in (("os", "simulated") if study.study.simulation else ("os",)):
        raise IdentityError("The noise of a ballot is 'os', or 'simulated' in a study that is a simulation.")
    if len(canonical(dict(value))) > MOST_BYTES:
        raise IdentityError(f"A ballot has at most {MOST_BYTES} bytes.")
    if value["graph"].get("nodes") != list(study.names):
        raise IdentityError("The ballot's graph is over other variables than the study's, or in another order.")
    graph = CausalGraph.from_json(value["graph"])
    if graph.to_json() != value["graph"]:
        raise IdentityError("The ballot's graph is not written as graphs are written: edges sorted, no more keys.")
    knowledge = Knowledge.from_json(value["knowledge"])
    whole = known(study, knowledge)
    absent = _pairs(value["absent"], study)
    if both := sorted(absent & graph.skeleton()):
        raise IdentityError(f"The ballot both has and rules out {' - '.join(both[0])}.")
    _check_graph(graph, study, whole)
    abstains = value["abstains"]
    if not re.fullmatch(r"[a-z-]{0,32}", abstains):
        raise IdentityError("The reason of an abstention is a code of at most 32 lower-case letters.")
    if abstains and (absent or graph != _required(study, whole)):
        raise IdentityError("The ballot abstains, and yet its graph has more than what is known.")
    return GraphBallot(graph, absent, knowledge, abstains, value["noise"])


def _check_graph(graph: CausalGraph, study: Study, knowledge: Knowledge) -> None:
    """Refuse a graph that is no pattern, has too many marks, breaks what is known, or has no causal order under it."""
    if len(graph.directed) + len(graph.undirected) < len(graph.edges):
        raise IdentityError("The ballot's graph has edges that are neither directed nor undirected.")
    if not _within(graph):
        raise IdentityError(
            f"The ballot's graph has more than {MOST_MARKS} marks, or {MOST_TRIPLES} pairs of neighbours."
        )
    if missing := sorted(knowledge.required - graph.directed):
        raise IdentityError(f"The ballot's graph lacks {' -> '.join(missing[0])}, which is known.")
    dag = extension(knowledge.orient(graph))
    if dag is None or not all(knowledge.allows(a, b) for a, b in dag.directed):
        raise IdentityError("The ballot's graph has no causal order that is consistent with it and what is known.")


def _within(graph: CausalGraph) -> bool:
    """Whether a graph has no more marks than are taken; what it takes to count them is bounded first."""
    degrees = [len(graph.adjacencies(node)) for node in graph.nodes]
    if sum(k * (k - 1) // 2 for k in degrees) > MOST_TRIPLES or len(graph.edges) > MOST_MARKS:
        return False
    return len(graph.edges) + len(graph.unshielded_colliders()) <= MOST_MARKS


def _required(study: Study, knowledge: Knowledge) -> CausalGraph:
    return CausalGraph.cpdag(sorted(knowledge.required), nodes=study.names)


def _pairs(digits: str, study: Study) -> frozenset[Pair]:
    pairs = pairs_of(study)
    if not re.fullmatch(f"[0-9a-f]{{{-(-len(pairs) // 4)}}}", digits):
        raise IdentityError(
            f"What a ballot rules out is one bit for each of {len(pairs)} pairs, in hexadecimal digits."
        )
    bits = "".join(f"{int(digit, 16):04b}" for digit in digits)
    if "1" in bits[len(pairs) :]:
        raise IdentityError("The ballot rules out pairs behind the last.")
    return frozenset(pair for pair, bit in zip(pairs, bits, strict=False) if bit == "1")
