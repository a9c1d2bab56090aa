"""A study's graph after the edits that its members voted: what an operator is shown of it, and the files of it.

The study's own result is history and is left as it is. Beside it come ``edited.json``, ``graph-edited.svg`` and
``graph-edited.html``, each time anew from the ledger, by the code that an auditor runs on a bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from causaldao.audit.case import Case, ErasedError
from causaldao.audit.edits import told
from causaldao.edits import Standing
from causaldao.enrolment import visible
from causaldao.errors import LedgerError
from causaldao.files import write_text
from causaldao.graph_ballots import votes_cast
from causaldao.ledger.log import Log
from causaldao.ledger.verify import Line, Report
from causaldao.models.graph import Pair
from causaldao.pictures.page import page
from causaldao.pictures.svg import draw
from causaldao.server import edits
from causaldao.server.results import drawn
from causaldao.signing import peek

_LONGEST = 10_000  # characters of what is said of an edit
_MEMBERS = ("member.admit", "member.rotate", "member.revoke")


def read(log: Log, study: str) -> tuple[dict[str, Any], Standing]:
    """The edited graph of a study with its effects, as `causaldao.audit.edits.told` gives them; ``effects`` is None
    where evidence that they rest on was erased. Errors as of `causaldao.edits.standing`."""
    found = edits.stands(log, study)
    try:
        return told(_case(log, found), found), found
    except ErasedError:
        return {**found.to_json(), "effects": None}, found


def write(out: Path, shown: dict[str, Any], found: Standing, votes: dict[str, dict[str, int]]) -> list[Path]:
    """The files, in a folder that is made if need be. ``votes`` are how each member voted, by the key of the mark."""
    out.mkdir(parents=True, exist_ok=True)
    marks, graph, said = _marks(found), found.edited.pattern, _said(shown)
    asked = found.study.effects[0] if found.study.effects else None
    treatment, outcome = (asked.treatment, asked.outcome) if asked else (None, None)
    count = f"{len(found.voted)} edit{'' if len(found.voted) == 1 else 's'} by vote"
    pages = {
        "edited.json": json.dumps(shown, indent=1, allow_nan=False),
        "graph-edited.svg": draw(
            graph, marks, treatment=treatment, outcome=outcome, notes=[f"edited by vote: {one}" for one in said]
        ),
        "graph-edited.html": page(
            graph, title=f"{found.study.name}: the graph after {count}", subtitle="; ".join(said), marks=marks,
            votes=votes, notes=_notes(shown, found), treatment=treatment, outcome=outcome,
        ),
    }  # fmt: skip
    for name, text in pages.items():
        write_text(out / name, text)
    return [out / name for name in pages]


def ballots(log: Log, study: str) -> dict[str, dict[str, int]]:
    """How each member voted in a study, by the key of the mark: +1, 0 or -1."""
    lines, asked = log.entries(kinds=("ballot",), study=study), edits.stands(log, study).study
    present = [name for line in log.entries(kinds=("study.roll-call",), study=study) for name in line.body["present"]]
    said = {line.body["member"]: peek(line.body["envelope"].encode()).body for line in lines}
    return votes_cast(asked, said, len(present))


def _case(log: Log, found: Standing) -> Case:
    """The study's entries and those on its members, as an audit looks at them."""
    study = found.study.hash
    records = sorted([*log.entries(kinds=_MEMBERS), *log.entries(study=study)], key=lambda one: one.index)
    lines = [Line(one.index, one.time, one.kind, one.body, one.payloads) for one in records]
    names = [name for line in lines if line.kind == "evidence" for name in line.payloads]
    payloads = dict(_payloads(log, names))
    report = Report(
        origin=log.head.origin, size=log.head.size, root=log.head.root, time="", entries=tuple(lines),
        payloads=payloads, members=(), cosigners=(), policy_fingerprint="",
        erased=tuple(name for name in names if name not in payloads),
    )  # fmt: skip
    proposed = next(place for place, line in enumerate(lines) if line.kind == "study.proposed")
    return Case(report, found.study, proposed)


def _payloads(log: Log, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with suppress(LedgerError):  # erased: what rests on it is left out, and said to be
            yield name, log.payload(name)


def _marks(found: Standing) -> list[dict[str, Any]]:
    """The votes on what the graph still has, and on what the ballots contested and no edit decided since."""
    graph, net = found.edited.pattern, found.edited.net
    colliders = graph.unshielded_colliders()
    kept = []
    for mark in drawn(found.marks):
        nodes = tuple(mark["nodes"])
        pairs = {(min(pair), max(pair)) for pair in (nodes[:2], nodes[-2:])}
        stands = nodes in colliders if mark["kind"] == "collider" else graph.adjacent(*nodes)
        if (stands or mark["status"] == "contested") and not (mark["status"] == "contested" and pairs & net.keys()):
            kept.append(dict(mark))
    return kept


def _notes(shown: dict[str, Any], found: Standing) -> dict[Pair, str]:
    """What was voted of each link, the last word on it."""
    return {
        one.edit.pair: said
        for one, step, said in zip(found.voted, found.edited.steps, _said(shown), strict=True)
        if not step.problem
    }


def _said(shown: dict[str, Any]) -> list[str]:
    """Each edit in words: what, who proposed it, why, and who voted for it; safe to be shown, as another wrote them."""
    words = (
        f"{edit['change']} {' -> '.join(edit['edge'])}"
        f"{', proposed by ' + edit['proposer'] if edit['proposer'] else ', put by the operator'}: {edit['reason']} "
        f"(votes: {', '.join(edit['votes'])}{'; NOT made: ' + edit['problem'] if edit['problem'] else ''})"
        for edit in shown["edits"]
    )
    return [visible(one, _LONGEST) for one in words]
