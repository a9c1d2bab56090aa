"""What a person reads of an entry: too little, something else than it says, or what it makes of their terminal."""

from __future__ import annotations

from typing import Any

import pytest

from causaldao.ledger.entry import KINDS
from causaldao.ledger.timeline import MAX_TEXT, Timeline, short

STUDY = "ab" * 32
VOTES = [{"member": "ada", "envelope": "{}"}, {"member": "bob", "envelope": "{}"}]
BY = "ada, bob"
SPEND = {"noise_multiplier": 1.0, "sample_rate": 1.0, "steps": 1}

# Bodies as the coordinator records them, and what is to be read.
SAID: list[tuple[str, dict[str, Any], str]] = [
    ("genesis", {"federation": "north", "faulty": 0}, "federation north was founded"),
    ("genesis", {"federation": "north", "faulty": 2}, "federation north was founded, to bear 2 liars"),
    ("member.admit", {"member": "ada", "key": "k", "witness": "w", "epoch": 0}, "ada was admitted"),
    ("member.admit", {"member": "eve", "votes": VOTES}, f"eve was admitted, by the votes of {BY}"),
    ("member.rotate", {"member": "ada", "votes": VOTES}, f"ada has new keys, by the votes of {BY}"),
    ("member.revoke", {"member": "eve", "reason": "left", "votes": VOTES},
     f"eve was revoked: left, by the votes of {BY}"),
    ("federation.faulty", {"faulty": 1, "votes": VOTES}, f"the federation is to bear 1 liar, by the votes of {BY}"),
    ("federation.policy", {"name": "data", "sha256": "cd" * 32, "votes": VOTES},
     f"policy data became cdcdcdcdcdcd, by the votes of {BY}"),
    ("federation.edit", {"study": STUDY, "edge": ["a", "b"], "change": "add", "reason": "a trial", "votes": VOTES},
     f"decided to add the edge a -> b: a trial, by the votes of {BY}  [small]"),
    ("federation.edit",
     {"study": STUDY, "edge": ["a", "b"], "change": "add", "reason": "a trial", "proposer": "bob", "votes": VOTES},
     f"decided to add the edge a -> b, proposed by bob: a trial, by the votes of {BY}  [small]"),
    ("study.proposed", {"study": STUDY, "document": {"study": {"name": "small"}}}, "study small was proposed"),
    ("study.draft", {"study": STUDY}, "study small is at draft"),
    ("study.approved", {"study": STUDY, "approvals": VOTES}, f"study small was approved by {BY}"),
    ("study.roll-call", {"study": STUDY, "present": ["ada", "bob"]}, "study small called the roll: ada, bob take part"),
    ("evidence", {"study": STUDY, "member": "hospital-03", "round": 0}, "hospital-03 gave evidence  [small]"),
    ("pool", {"study": STUDY, "pool": {"kept": ["ada"], "accused": []}}, "the evidence was pooled: kept ada  [small]"),
    ("pool", {"study": STUDY, "pool": {"kept": ["ada"], "accused": ["bob"]}},
     "the evidence was pooled: kept ada, accused bob  [small]"),
    ("study.evidence", {"study": STUDY, "noise": "os"}, "study small has its evidence"),
    ("ballot", {"study": STUDY, "member": "ada", "round": 0}, "ada voted on the graph  [small]"),
    ("study.ballots", {"study": STUDY, "voters": ["ada", "bob"]}, "study small has the votes of ada, bob"),
    ("adopt", {"study": STUDY, "consensus": {"pattern": {"edges": [{}]}}, "effects": []},
     "a graph with 1 edge was adopted  [small]"),
    ("effects", {"study": STUDY, "member": "ada", "round": 0}, "ada gave the sums for effects  [small]"),
    ("estimate", {"study": STUDY, "effects": [{"estimate": 0.5}, {"estimate": None}]},
     "1 of 2 effects were estimated from what members gave  [small]"),
    ("study.adopted", {"study": STUDY}, "study small has its graph"),
    ("update", {"study": STUDY, "member": "ada", "round": 2, "norm": 1.0}, "ada sent its update of round 2  [small]"),
    ("aggregate", {"study": STUDY, "round": 2, "rule": "arc", "excluded": ["hospital-07"]},
     "round 2 aggregated by arc, left out hospital-07  [small]"),
    ("aggregate", {"study": STUDY, "round": 3, "rule": "mean", "excluded": []}, "round 3 aggregated by mean  [small]"),
    ("study.training", {"study": STUDY, "round": 2, "loss": 0.51234}, "study small finished round 2, loss 0.512"),
    ("study.evaluated", {"study": STUDY, "rounds": 3}, "study small was trained for 3 rounds"),
    ("privacy.spend", {"study": STUDY, "member": "ada", "kind": "update", "round": 2, **SPEND},
     "ada spent privacy budget for its update of round 2  [small]"),
    ("complaint", {"study": STUDY, "by": "coordinator", "kind": "update", "round": 1, "code": "identity",
                   "member": "eve", "reason": "a replay"},
     "eve's update of round 1 was not taken (identity): a replay  [small]"),
    ("complaint", {"study": STUDY, "kind": "evidence", "round": 0, "code": "network", "member": "", "reason": ""},
     "an answer: evidence was not taken (network)  [small]"),
    ("equivocation", {"study": STUDY, "member": "eve", "kind": "ballot", "round": 0, "exhibits": []},
     "eve signed two contents for one ballot  [small]"),
    ("release", {"study": STUDY, "model": "", "dag": {}, "votes": VOTES},
     f"the effects were released, by the votes of {BY}  [small]"),
    ("release", {"study": STUDY, "model": "ef" * 32, "dag": {}}, "the effects and model were released  [small]"),
    ("study.released", {"study": STUDY}, "study small was released"),
    ("study.closed", {"study": STUDY, "heard": ["ada"]}, "study small closed"),
    ("study.aborted", {"study": STUDY, "code": "guarantee", "exit_code": 13, "reason": "2 of 3"},
     "study small stopped (guarantee): 2 of 3"),
    ("erasure", {"payloads": ["ab" * 32, "cd" * 32], "reason": "a court's order"},
     "the bytes of 2 payloads were erased: a court's order"),
]  # fmt: skip


def test_a_graph_is_released_as_effects() -> None:
    """A study of local ballots has none, and releases its graph; another's release says what it said before."""
    told = Timeline()
    for study, discovery in (("ab" * 32, {"evidence": "local"}), ("cd" * 32, {"evidence": "shared"}), ("ef" * 32, 7)):
        told.words("study.proposed", {"study": study, "document": {"study": {"name": "x"}, "discovery": discovery}})
    said = [told.words("release", {"study": study, "model": "", "votes": VOTES}) for study in ("ab" * 32, "cd" * 32)]
    assert said == [f"the {what} released, by the votes of {BY}  [x]" for what in ("graph was", "effects were")]


def test_an_entry_says_something_else() -> None:
    timeline = Timeline()
    timeline.words("study.proposed", {"study": STUDY, "document": {"study": {"name": "small"}}})
    for kind, body, words in SAID:
        assert timeline.words(kind, body) == words


def test_a_kind_of_the_contract_has_no_words() -> None:
    assert {kind for kind, _, _ in SAID} >= KINDS


def test_a_study_that_was_proposed_before_has_no_name() -> None:
    assert Timeline().words("study.closed", {"study": STUDY}) == "study abababababab closed"


HOSTILE: list[Any] = [
    "\x1b[2J", "a\nb", "\u202ereversed", "x" * 10**6, [], {}, None, True, -1, 10**4000, 1e308, ["\x1b[1A"] * 1000,
    {"\x1b": "\n"}, [[[["deep"]]]], "", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in SAID} | {"\x1b[2J", "study.\x1b[2J", ""}))
def test_a_body_moves_the_cursor_or_is_a_traceback(kind: str) -> None:
    """A log may sign whatever it likes; whoever reads it must be able to."""
    bodies = [body for other, body, _ in SAID if other == kind] or [{"study": STUDY}]
    for body in bodies:
        for value in HOSTILE:
            timeline = Timeline()
            for name in [*body, "more"]:
                line = timeline.line(3, "now", kind, {**body, name: value})
                assert line.isprintable()
                assert len(line) < 900
            for hostile in (
                {},
                dict.fromkeys(body, value),
                {"\x1b[2J": value},
                dict.fromkeys(map(str, range(999)), value),
            ):
                assert timeline.line(3, "\x1b[2J", kind, hostile).isprintable()


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def test_a_value_that_is_too_long_or_too_deep_is_shown_whole() -> None:
    assert len(short("é" * 1000)) == MAX_TEXT
    assert short(deep(100_000)) == "?"
    assert short({"a": [1, "b"]}) == '{"a": [1, "b"]}'
    assert short("x" * MAX_TEXT) == "x" * MAX_TEXT
