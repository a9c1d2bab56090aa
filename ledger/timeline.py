"""What happened, in words: one line for each entry of a ledger.

Bodies are data of others. Whatever stands in one, its line is one line: texts are cut, and what a terminal would obey
is written out. A body that is not what its kind promises is shown as it is; that it is wrong is for the verifier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from causaldao.logs import visible

Body = Mapping[str, Any]
MAX_TEXT = 40  # characters of one text
MAX_NAMES = 6  # of one list; the rest is counted
MAX_STUDIES = 10_000  # whose names are remembered
_STUDY = "study."


class Timeline:
    """Tells entries in their order; it remembers what studies are called, and which of them vote on a graph alone."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._local = set[str]()  # studies of local ballots, which release a graph and nothing else

    def words(self, kind: str, body: Body) -> str:
        """What an entry says, as a sentence without a stop."""
        try:
            said = self._said(kind, body)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError):
            return "  ".join(f"{short(name)}={short(value)}" for name, value in list(body.items())[:MAX_NAMES])
        return said

    def line(self, index: int, time: str, kind: str, body: Body) -> str:
        """An entry's line: index, time, kind and words."""
        return f"{index:>6}  {short(time)}  {short(kind):<16}  {self.words(kind, body)}".rstrip()

    def _said(self, kind: str, body: Body) -> str:
        if kind == "study.proposed":
            self._remember(body)
        study = self._called(body)
        if kind.startswith(_STUDY):
            return f"study {study} {_STATES.get(kind.removeprefix(_STUDY), _plain_state(kind))(body)}"
        if kind not in _KINDS:
            raise KeyError(kind)
        said = _graph_released(body) if kind == "release" and body["study"] in self._local else _KINDS[kind](body)
        return said + (f"  [{study}]" if study else "")

    def _remember(self, body: Body) -> None:
        name = body.get("document", {}).get("study", {}).get("name")
        if isinstance(name, str) and isinstance(body["study"], str) and len(self._names) < MAX_STUDIES:
            self._names[body["study"]] = short(name)
            if body["document"].get("discovery", {}).get("evidence") == "local":
                self._local.add(body["study"])

    def _called(self, body: Body) -> str:
        study = body.get("study")
        return self._names.get(study, short(study[:12])) if isinstance(study, str) else ""


def short(value: Any) -> str:
    """A value on one line, cut; what a member wrote cannot move the reader's cursor."""
    try:
        text = visible(value[: MAX_TEXT + 1] if isinstance(value, str) else json.dumps(value))
    except (TypeError, ValueError, RecursionError):  # too deep, or a number of more digits than Python writes
        return "?"
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def names(values: Collection[Any]) -> str:
    """A list of names; "nobody" if there are none."""
    listed = [short(value) for value in list(values)[:MAX_NAMES]]
    more = len(values) - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "") if listed else "nobody"


def _count(number: int, what: str) -> str:
    return f"{short(number)} {what}" if number == 1 else f"{short(number)} {what}s"


def _because(body: Body) -> str:
    return f": {short(body['reason'])}" if body.get("reason") else ""


def _by_votes(body: Body) -> str:
    votes = body.get("votes")
    return f", by the votes of {names([vote['member'] for vote in votes])}" if votes else ""


def _round(body: Body) -> str:
    return f" of round {short(body['round'])}" if body.get("round") else ""


def _founded(body: Body) -> str:
    bears = f", to bear {_count(body['faulty'], 'liar')}" if body.get("faulty") else ""
    return f"federation {short(body['federation'])} was founded{bears}"


def _pooled(body: Body) -> str:
    pool = body["pool"]
    accused = f", accused {names(pool['accused'])}" if pool["accused"] else ""
    return f"the evidence was pooled: kept {names(pool['kept'])}{accused}"


def _adopted(body: Body) -> str:
    return f"a graph with {_count(len(body['consensus']['pattern']['edges']), 'edge')} was adopted"


def _estimated(body: Body) -> str:
    answered = sum(effect["estimate"] is not None for effect in body["effects"])
    return f"{answered} of {_count(len(body['effects']), 'effect')} were estimated from what members gave"


def _aggregated(body: Body) -> str:
    left = f", left out {names(body['excluded'])}" if body["excluded"] else ""
    return f"round {short(body['round'])} aggregated by {short(body['rule'])}{left}"


def _spent(body: Body) -> str:
    return f"{short(body['member'])} spent privacy budget for its {_what(body)}"


def _what(body: Body) -> str:
    """The question of which an entry speaks: "evidence", "update of round 2"."""
    return f"{short(body['kind'])}{_round(body)}"


def _complained(body: Body) -> str:
    whose = f"{short(body['member'])}'s " if body.get("member") else "an answer: "
    return f"{whose}{_what(body)} was not taken ({short(body['code'])}){_because(body)}"


def _released(body: Body) -> str:
    what = "effects and model" if body["model"] else "effects"
    return f"the {what} were released{_by_votes(body)}"


def _graph_released(body: Body) -> str:
    return f"the graph was released{_by_votes(body)}"


def _edited(body: Body) -> str:
    one, other = body["edge"]
    whose = f", proposed by {short(body['proposer'])}" if "proposer" in body else ""
    change = f"{short(body['change'])} the edge {short(one)} -> {short(other)}"
    return f"decided to {change}{whose}{_because(body)}{_by_votes(body)}"


def _erased(body: Body) -> str:
    return f"the bytes of {_count(len(body['payloads']), 'payload')} were erased{_because(body)}"


def _changed_policy(body: Body) -> str:
    return f"policy {short(body['name'])} became {short(body['sha256'][:12])}{_by_votes(body)}"


_KINDS: dict[str, Callable[[Body], str]] = {
    "genesis": _founded,
    "member.admit": lambda body: f"{short(body['member'])} was admitted{_by_votes(body)}",
    "member.rotate": lambda body: f"{short(body['member'])} has new keys{_by_votes(body)}",
    "member.revoke": lambda body: f"{short(body['member'])} was revoked{_because(body)}{_by_votes(body)}",
    "federation.faulty": lambda body: f"the federation is to bear {_count(body['faulty'], 'liar')}{_by_votes(body)}",
    "federation.edit": _edited,
    "federation.policy": _changed_policy,
    "evidence": lambda body: f"{short(body['member'])} gave evidence",
    "pool": _pooled,
    "ballot": lambda body: f"{short(body['member'])} voted on the graph",
    "adopt": _adopted,
    "effects": lambda body: f"{short(body['member'])} gave the sums for effects",
    "estimate": _estimated,
    "update": lambda body: f"{short(body['member'])} sent its update{_round(body)}",
    "aggregate": _aggregated,
    "privacy.spend": _spent,
    "complaint": _complained,
    "equivocation": lambda body: f"{short(body['member'])} signed two contents for one {_what(body)}",
    "release": _released,
    "erasure": _erased,
}


def _plain_state(kind: str) -> Callable[[Body], str]:
    return lambda body: f"is at {short(kind.removeprefix(_STUDY))}"


_STATES: dict[str, Callable[[Body], str]] = {
    "proposed": lambda body: "was proposed",
    "approved": lambda body: f"was approved by {names([one['member'] for one in body['approvals']])}",
    "roll-call": lambda body: f"called the roll: {names(body['present'])} take part",
    "evidence": lambda body: "has its evidence",
    "ballots": lambda body: f"has the votes of {names(body['voters'])}",
    "adopted": lambda body: "has its graph",
    "training": lambda body: f"finished round {short(body['round'])}, loss {float(body['loss']):.3f}",
    "evaluated": lambda body: f"was trained for {_count(body['rounds'], 'round')}",
    "released": lambda body: "was released",
    "closed": lambda body: "closed",
    "aborted": lambda body: f"stopped ({short(body['code'])}){_because(body)}",
}
