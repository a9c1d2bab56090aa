"""An independent monitor: it follows a log and believes nothing but signatures and hashes.

Everything that it was shown is a leaf under a checkpoint that the log signed, and every checkpoint goes on from the
last. Of the tree it keeps the nodes along its right edge: from them and the new entries it computes each new root
itself; proofs of consistency lead from what it saw, and from where it is, to the checkpoint. What it last saw can be
kept in a file: a log that shows another history a year later then contradicts a signature of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from causaldao.errors import ConfigurationError, Finding, LedgerError, MisuseError
from causaldao.files import write_text
from causaldao.ledger import strict
from causaldao.ledger.merkle import EMPTY_ROOT, grown, leaf_hash, stored_root, verify_consistency
from causaldao.ledger.note import COSIGNER, LOG, Checkpoint, Verifier, cosigners, open_note
from causaldao.ledger.reader import Reader
from causaldao.ledger.verify import Line, Policy
from causaldao.logs import visible

FORMAT = "causaldao-watch/1"
PAGE = 1_000  # entries that are verified, and told, together
MAX_STATE_BYTES = 2 << 20
_STATE = {"format": str, "note": str, "edge": list}
_RECORD = {"index": int, "previous": str, "kind": str, "time": str, "body": dict, "payloads": list}
Place = tuple[int, int]


@dataclass(frozen=True)
class Seen:
    """What was verified last: the log's signed note ("" before the first), its checkpoint, and the nodes that make up
    its root, by level and index: one for each 1 among the size's binary digits."""

    note: str = ""
    checkpoint: Checkpoint | None = None
    edge: Mapping[Place, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.checkpoint.size if self.checkpoint else 0

    @property
    def root(self) -> bytes:
        return self.checkpoint.root if self.checkpoint else EMPTY_ROOT


class Monitor:
    """Follows one log. ``state`` is the file that keeps what was seen, made if it is missing; None: memory only.

    Raises
    ------
    ConfigurationError
        the file is not one that a monitor of this log wrote.
    """

    def __init__(self, reader: Reader, policy: Policy, state: Path | None = None) -> None:
        self.reader = reader
        self._policy = policy
        self._log = Verifier(policy.origin, LOG, policy.log)
        self._witnesses = {name: Verifier(key.name, COSIGNER, key.raw) for name, key in policy.witnesses.items()}
        self._state = state
        self.seen = self._load(state) if state is not None and state.exists() else Seen()

    def follow(self, note: str) -> Iterator[list[Line]]:
        """Verify a checkpoint and all entries that are new up to it, and give these, some at a time.

        When the last were given, the checkpoint is what was seen last; a kill before makes the same entries new again.
        A checkpoint that is smaller than what was seen must fit into it, and has no new entries.

        Raises
        ------
        Finding
            the log did not sign it, contradicts itself, or shows an entry that is not under it. Where it signed both,
            ``problems`` holds the two notes.
        """
        checkpoint = self._opened(note)
        self._require_one_history(note, checkpoint)
        edge = dict(self.seen.edge)
        for start in range(self.seen.size, checkpoint.size, PAGE):
            lines = self._page(start, min(start + PAGE, checkpoint.size), edge)
            self._require_under(checkpoint, start + len(lines), edge)
            yield lines
        if checkpoint.size >= self.seen.size:
            self.seen = Seen(note, checkpoint, edge)
            self._save()

    def fits(self, note: str) -> Checkpoint:
        """A checkpoint of the history that was seen, whatever its size. Finding if it is of another."""
        checkpoint = self._opened(note)
        self._require_one_history(note, checkpoint)
        return checkpoint

    def cosigners(self, note: str) -> tuple[str, ...]:
        """Who of the policy's witnesses cosigned a checkpoint that the log signed. Finding if a cosignature is bad."""
        self._opened(note)
        try:
            found = cosigners(note, self._witnesses.values())
        except LedgerError as error:
            raise Finding(
                f"A cosignature of {self._policy.origin!r} is bad: {error.message}", problems=[note]
            ) from error
        return tuple(sorted(name for name, witness in self._witnesses.items() if witness.name in found))

    def _opened(self, note: str) -> Checkpoint:
        try:
            return open_note(note, self._log)
        except LedgerError as error:
            raise Finding(
                f"What was shown is no checkpoint of {self._policy.origin!r}: {error.message}",
                problems=[_plain(note[:4096])],
            ) from error

    def _require_one_history(self, note: str, checkpoint: Checkpoint) -> None:
        """The checkpoint and what was seen last are of one tree."""
        (old, new) = sorted(((self.seen.size, self.seen.root), (checkpoint.size, checkpoint.root)))
        try:
            proof = self.reader.consistency(old[0], new[0]) if 0 < old[0] < new[0] else ()
            verify_consistency(*old, *new, proof)
        except (LedgerError, MisuseError) as error:  # MisuseError: it says that it has no such size any more
            raise Finding(
                f"The log {self._policy.origin!r} contradicts itself: it signed size {self.seen.size} with root "
                f"{self.seen.root.hex()}, and now shows size {checkpoint.size} with root {checkpoint.root.hex()}. It "
                f"does not prove that they are one history: {error.message} Keep both notes, and show them to the "
                f"members.{self._keep(note)}",
                problems=[_plain(self.seen.note), _plain(note)],
            ) from error

    def _keep(self, note: str) -> str:
        """Both notes as they are, in a file beside the state; returns where, as a sentence."""
        if self._state is None:
            return ""
        path = self._state.with_name(f"{self._state.name}.evidence")
        write_text(path, json.dumps({"seen": self.seen.note, "shown": note}))
        return f" They stand in {path}."

    def _page(self, start: int, stop: int, edge: dict[Place, bytes]) -> list[Line]:
        """The entries, unverified; their leaves are added to the tree's edge."""
        told = list(self.reader.entries(start, stop))
        if [entry.index for entry in told] != list(range(start, stop)):
            raise LedgerError(f"The log {self._policy.origin!r} sent other entries than {start} to {stop - 1}.")
        added = grown(start, [leaf_hash(entry.record) for entry in told], lambda level, index: edge[level, index])
        edge |= {(level, index): value for level, index, value in added}
        wanted = set(_edge(stop))
        for place in edge.keys() - wanted:
            del edge[place]
        return [_line(entry.record, start + offset) for offset, entry in enumerate(told)]

    def _require_under(self, checkpoint: Checkpoint, size: int, edge: Mapping[Place, bytes]) -> None:
        """The tree of the entries that came so far is the beginning of the checkpoint's."""
        root = stored_root(size, lambda level, index: edge[level, index])
        try:
            proof = self.reader.consistency(size, checkpoint.size) if size < checkpoint.size else ()
            verify_consistency(size, root, checkpoint.size, checkpoint.root, proof)
        except (LedgerError, MisuseError) as error:
            raise Finding(
                f"The entries that the log {self._policy.origin!r} shows, up to {size - 1}, are not those under its "
                f"checkpoint of size {checkpoint.size}: {error.message}"
            ) from error

    def _load(self, state: Path) -> Seen:
        try:
            data = state.read_bytes()
            if len(data) > MAX_STATE_BYTES:
                self._refuse("it is too large")
            value = json.loads(data)
            strict.fields(value, _STATE, "state")
            checkpoint = open_note(value["note"], self._log)
            hashes = [bytes.fromhex(text) for text in value["edge"]]
            edge = dict(zip(_edge(checkpoint.size), hashes, strict=True))
            root = stored_root(checkpoint.size, lambda level, index: edge[level, index])
        except (OSError, ValueError, TypeError, RecursionError, LedgerError) as error:
            self._refuse(str(error))
        if value["format"] != FORMAT or root != checkpoint.root:
            self._refuse("it has another form, or its nodes do not give its root")
        return Seen(value["note"], checkpoint, edge)

    def _refuse(self, reason: str) -> NoReturn:
        raise ConfigurationError(
            f"{self._state} is not what a watch of {self._policy.origin!r} under this policy wrote ({reason}): restore "
            "it, or begin anew with another file. A watch that begins anew cannot tell what was shown before."
        )

    def _save(self) -> None:
        if self._state is None:
            return
        edge = [self.seen.edge[place].hex() for place in _edge(self.seen.size)]
        try:
            write_text(self._state, json.dumps({"format": FORMAT, "note": self.seen.note, "edge": edge}))
        except OSError as error:
            raise MisuseError(f"{self._state} cannot be written: {error.strerror}. Choose another --state.") from error


def _edge(size: int) -> list[Place]:
    """The complete subtrees that a tree of ``size`` leaves is made of, from the largest."""
    return [(level, (size >> level) - 1) for level in range(size.bit_length() - 1, -1, -1) if size >> level & 1]


def _plain(note: str) -> str:
    """A note for a terminal: what is not printable in it, and no note of ours has such, is written out."""
    return "\n".join(map(visible, note.split("\n")))


def _line(record: bytes, index: int) -> Line:
    """What an entry says, read strictly, but not judged."""
    value: Any = strict.read(record, f"entry {index}")
    strict.fields(value, _RECORD, f"entry {index}")
    if value["index"] != index:
        raise strict.fault(f"entry {index}", f"its record says that it is entry {value['index']}")
    return Line(index, value["time"], value["kind"], value["body"], tuple(value["payloads"]))
