"""Votes of this member on what its federation is asked to change, each with the owner's yes.

What the coordinator tells of a motion is not believed: its id is computed anew from what is shown to the owner, and the
vote is signed for that, in the epoch that the ledger itself has. Before it signs, the node is shown the ledger as it is
now, checks that it goes on from what its witness saw, and cosigns it; the vote names that checkpoint. So a vote serves
nothing else and no other history, and it needs no study before it. A node that was never shown the ledger believes the
first that it sees, as at a roll call.

Of an edit of a graph the owner is shown what it would change (`causaldao.client.edits`). One that does not fit the
graph gets no vote. Whoever proposes one signs what names it as the proposer, and that is its vote; a motion that names
this member otherwise gets none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from causaldao import governance
from causaldao.client import edits, enrolment
from causaldao.client.enrolment import PATIENCE, Patience
from causaldao.client.node import Node
from causaldao.client.witnessing import Attendant, open_witness
from causaldao.edits import Edit, Standing, Step
from causaldao.enrolment import visible
from causaldao.errors import (
    CausalDAOError,
    ConfigurationError,
    IdentityError,
    LedgerError,
    MisuseError,
    ProofError,
    RefusedError,
    StaleError,
)
from causaldao.ledger.note import LOG, Checkpoint, Verifier, open_note
from causaldao.ledger.witness import Seen
from causaldao.trail import Trail, Word

_SHORTEST = 8  # digits of an id that may stand for it
_LONGEST = 10_000  # characters of what a motion says: more than a coordinator takes


@dataclass(frozen=True)
class Motion:
    """A motion as this node read it. ``words`` say what it asks, safe to be shown; ``votes`` name who voted.

    ``edit`` is the body of an edit of a graph, else None; ``proposer`` who proposed it ("" for the operator) and
    ``change`` what it would do to the graph, or why it cannot.

    ``epoch`` is the one in which it is decided, by ``needed`` votes of ``members``; ``since`` the entry that began it.
    """

    id: str
    kind: str
    words: str
    opened: str
    votes: tuple[str, ...]
    epoch: int
    needed: int
    members: int
    since: int
    edit: Mapping[str, Any] | None = None
    proposer: str = ""
    change: str = ""


def motions(folder: Path, now: datetime, *, patience: Patience = PATIENCE) -> tuple[Motion, ...]:
    """The motions that are open, oldest first. Nothing is cosigned for looking at them.

    Raises
    ------
    IdentityError
        the node has not joined, is no member, or a motion is not the one of its id.
    NetworkError
        the coordinator cannot be reached.
    """
    told = enrolment.motions(folder, now, patience=patience)
    return tuple(_with_changes([_read(one, told) for one in told["motions"]], folder, now, patience))


def chosen(open_: tuple[Motion, ...], reference: str) -> Motion:
    """The motion of that id, or whose id begins so; a MisuseError that lists them if there is not one."""
    found = [motion for motion in open_ if len(reference) >= _SHORTEST and motion.id.startswith(reference)]
    if len(found) != 1:
        known = "; ".join(f"{motion.id[:12]} ({motion.words})" for motion in open_) or "none"
        raise MisuseError(f"There is no one motion {reference!r} to vote on; open are: {known}.")
    return found[0]


def vote(folder: Path, motion: Motion, now: datetime, *, patience: Patience = PATIENCE) -> dict[str, Any]:
    """Sign a vote for a motion and send it; what became of the motion: ``state``, and the names in ``votes``.

    Raises
    ------
    LedgerError
        the ledger that is shown does not go on from what this node's witness saw, or the witness cosigns no more.
    IdentityError, GuaranteeError
        the ledger has another epoch than the motion was shown in, this member not with these keys, or members for whom
        nobody voted.
    IdentityError, RefusedError
        the coordinator takes no vote of this member, or not on this motion any more.
    """
    if motion.proposer == enrolment.read_federation(folder)["name"]:
        raise IdentityError(
            f"Nothing was voted: motion {motion.id[:12]} names this member as its proposer. If you proposed it, run "
            "causaldao node propose-edit again with the same words; if not, ask the operator who did."
        )
    node, attendant = _attending(folder, now)
    word = _shown(node, attendant, folder, now, patience)
    _require_told(attendant, motion)
    checkpoint = _checkpoint(node, word)
    if motion.edit is not None and motion.change != _change(folder, motion.edit, checkpoint, now, patience):
        raise IdentityError(
            f"Nothing was voted: what motion {motion.id[:12]} would change is not what was shown before; another edit "
            "passed meanwhile, or the coordinator tells something else than its ledger. Look at the motions again."
        )
    envelope = _sign(node, checkpoint, motion.epoch, motion.id)
    return enrolment.vote(folder, motion.id, envelope, word.pack().decode(), now, patience=patience)


def edit(folder: Path, graph: Standing, edge: tuple[str, str], change: str, reason: str) -> tuple[dict[str, Any], Step]:
    """The body of an edit that this member proposes of a graph, and what it does; ConfigurationError: it cannot be."""
    step = graph.require_fit(Edit(edge[0], edge[1], change))
    name = enrolment.read_federation(folder)["name"]
    body = {
        "study": graph.study.hash, "edge": list(edge), "change": change, "reason": reason, "proposer": name,
        "does": step.digest,
    }  # fmt: skip
    return body, step


def propose(folder: Path, body: Mapping[str, Any], now: datetime, *, patience: Patience = PATIENCE) -> dict[str, Any]:
    """Propose an edit of a graph (`edit`) with this member's vote for it; the ``motion``, its ``state`` and ``votes``.

    Raises
    ------
    RefusedError
        the edit does not fit the graph, or the coordinator takes no more of this member now.
    LedgerError, IdentityError
        as of `vote`.
    """
    node, attendant = _attending(folder, now)
    word = _shown(node, attendant, folder, now, patience)
    checkpoint, epoch = _checkpoint(node, word), attendant.epoch()
    assert epoch is not None  # the ledger was just shown, with its members
    _change(folder, body, checkpoint, now, patience)
    id = governance.motion(governance.EDIT, body)
    envelope = _sign(node, checkpoint, epoch.number, id)
    told = enrolment.propose(folder, body, envelope, word.pack().decode(), now, patience=patience)
    if told["motion"] != id:
        raise IdentityError(
            f"The coordinator put another motion, {told['motion'][:12]!r}, than was proposed, {id[:12]}."
        )
    return {"motion": id, "state": visible(str(told["state"])), "votes": [visible(str(name)) for name in told["votes"]]}


def _change(folder: Path, body: Mapping[str, Any], checkpoint: Checkpoint, now: datetime, patience: Patience) -> str:
    """What an edit would change, by the ledger that this node's witness has just cosigned; refused if it cannot be."""
    found = edits.look(folder, body["study"], now, checkpoint, patience=patience)
    try:
        return visible(found.words(found.require(body)), _LONGEST)
    except ConfigurationError as error:
        raise RefusedError(f"Nothing was signed: {error.message}") from error


def _with_changes(found: list[Motion], folder: Path, now: datetime, patience: Patience) -> Iterator[Motion]:
    """The motions, each edit with what it would change; one graph that cannot be shown hides no other motion."""
    graphs: dict[str, Standing | str] = {}
    for motion in found:
        if motion.edit is None:
            yield motion
            continue
        study = motion.edit["study"]
        if study not in graphs:
            try:
                graphs[study] = edits.look(folder, study, now, patience=patience)
            except CausalDAOError as error:
                graphs[study] = f"what it would change cannot be shown: {error.message}"
        graph = graphs[study]
        words = graph if isinstance(graph, str) else graph.told(motion.edit)
        yield replace(motion, change=visible(words, _LONGEST))


def _attending(folder: Path, now: datetime) -> tuple[Node, Attendant]:
    node = Node.open(folder)
    return node, Attendant(node, lambda: int(now.timestamp()))


def _sign(node: Node, checkpoint: Checkpoint, epoch: int, motion: str) -> str:
    return governance.make_vote(
        node.key, federation=node.config.federation, member=node.config.name, epoch=epoch, motion=motion,
        size=checkpoint.size, root=checkpoint.root.hex(),
    )  # fmt: skip


def _shown(node: Node, attendant: Attendant, folder: Path, now: datetime, patience: Patience) -> Word:
    """Have this node's witness see the ledger as it is now, if it still vouches for it; its cosignature."""
    witness = open_witness(node)
    if witness.status != "witnessing":
        raise LedgerError(
            f"This node's witness is {witness.status}, it vouches for no ledger now: nothing was voted. It saw "
            f"{_what(witness.seen)}. {witness.reason}"
        )
    try:
        try:
            return _look(attendant, folder, now, patience)
        except StaleError:  # the running node may have answered a study in between, and seen more
            return _look(attendant, folder, now, patience)
    except (StaleError, ProofError) as error:
        raise LedgerError(
            "Nothing was voted: the ledger that the coordinator shows does not go on from what this node's witness "
            f"saw, {_what(witness.seen)}. {error.message} Ask the operator, and compare with the other members."
        ) from error


def _look(attendant: Attendant, folder: Path, now: datetime, patience: Patience) -> Word:
    """Have this node's witness see the ledger as it is now; its cosignature."""
    known, seen = attendant.known()
    trail = enrolment.motions(folder, now, known, seen.pack().decode(), patience=patience)["trail"]
    if not trail:
        raise LedgerError(
            "Nothing was voted: what changed the federation since this node looked last is larger than one answer of "
            "the coordinator. Take part in a study's roll call first, where more is shown at once."
        )
    return attendant.attend(Trail.unpack(trail.encode()))


def _require_told(attendant: Attendant, motion: Motion) -> None:
    """The epoch is the ledger's, by the entries that this node has checked, and not what it was told."""
    epoch = attendant.epoch()
    told = (motion.epoch, motion.needed, motion.members, motion.since)
    if epoch is None or told != (epoch.number, epoch.quorum, len(epoch.members), epoch.last_change):
        raise IdentityError(
            f"Nothing was voted: motion {motion.id[:12]} was shown as one of epoch {motion.epoch}, decided by "
            f"{motion.needed} of {motion.members} members, and by the ledger that is not so (any more): the members "
            "changed meanwhile, or the coordinator tells something else than its ledger. Look at the motions again."
        )


def _checkpoint(node: Node, word: Word) -> Checkpoint:
    return open_note(word.note, Verifier(node.config.origin, LOG, node.coordinator.raw))


def _what(seen: Seen) -> str:
    return f"{seen.size} entries with the root {seen.root}" if seen.size else "nothing yet"


def _read(one: dict[str, Any], told: dict[str, Any]) -> Motion:
    try:
        words = governance.describe(one["kind"], one["body"], told["faulty"])
        same = governance.motion(one["kind"], one["body"]) == one["id"]
    except (CausalDAOError, KeyError, TypeError) as error:
        raise IdentityError(f"Motion {one['id'][:12]} cannot be read, so it cannot be voted on: {error}.") from error
    if not same:
        raise IdentityError(f"Motion {one['id'][:12]} is not what it says: the coordinator shows something else.")
    body = one["body"] if one["kind"] == governance.EDIT else None
    return Motion(
        one["id"], one["kind"], visible(words, _LONGEST), visible(one["opened"], 80), tuple(map(visible, one["votes"])),
        told["epoch"], told["needed"], told["members"], told["since"], body, (body or {}).get("proposer", ""),
    )  # fmt: skip
