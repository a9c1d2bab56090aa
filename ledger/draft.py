"""What one transaction of the log will record, put together without the database.

Calls of `Log.append` are added to a draft one after the other, as if each had a transaction of its own; one that is
refused leaves no trace in it. Then the draft is signed as a whole: one head, one step of the Merkle tree.
"""

from __future__ import annotations

import base64
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from causaldao.errors import LedgerError
from causaldao.ledger.entry import Entry, entry_text, next_link, record_bytes
from causaldao.ledger.head import Seen, sign_head
from causaldao.ledger.merkle import leaf_hash
from causaldao.ledger.note import Checkpoint
from causaldao.ledger.tree import Row
from causaldao.signing import SigningKey, VerifyKey


@dataclass(frozen=True)
class Item:
    """An entry to be recorded, and the words of members that it holds: the name of each with its envelope."""

    entry: Entry
    words: tuple[tuple[str, str], ...]

    @property
    def speakers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.words)

    @property
    def to_erase(self) -> Sequence[str]:
        """The payloads whose bytes go when it is recorded."""
        return self.entry.body["payloads"] if self.entry.kind == "erasure" else ()


@dataclass(frozen=True)
class Call:
    """One call of `Log.append`: its ``affairs``, and the size ``at`` which its entries must begin (None: any)."""

    items: tuple[Item, ...]
    state: Mapping[str, bytes]
    affairs: frozenset[str | None]
    at: int | None

    @classmethod
    def of(cls, entries: Sequence[Entry], state: Mapping[str, bytes], own: str | None, at: int | None) -> Call:
        """``own``: see `Log.append`. A state without entries is of that affair."""
        items = tuple(Item(entry, tuple(_spoken(entry.body))) for entry in entries)
        affairs = {affair(entry.kind, entry.body) for entry in entries}
        return cls(items, state, frozenset(affairs | ({own} if own is not None or not entries else set())), at)


@dataclass
class Past:
    """What is recorded, as far as the calls have to be held against it: index and content of the ``keys`` of their
    entries, the index of each member's revocation, of its last change of keys with the id of its key since, and of each
    of their payloads' erasure, the payloads ``held`` of
    those that they erase.
    """

    keys: dict[str, tuple[int, str]]
    revoked: dict[str, int]
    rotated: dict[str, tuple[int, str]]
    erased: dict[str, int]
    held: set[str]


@dataclass
class Draft:
    """What will be recorded after ``before``: the ``rows`` of the entries, and what goes with them."""

    key: SigningKey
    before: Seen
    time: str
    past: Past
    rows: list[dict[str, Any]] = field(default_factory=list)
    payloads: dict[str, bytes] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    state: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The log's size with what was added so far."""
        return self.before.head.size + len(self.rows)

    def add(self, call: Call) -> list[int]:
        """The indices of the call's entries.

        Raises
        ------
        LedgerError
            one of them is refused: see `Log.append`. Nothing was added.
        """
        if call.at is not None and call.at != self.size:
            raise LedgerError(
                f"The log has {self.size} entries, but this step was decided at size {call.at}. Nothing was recorded; "
                "decide it again."
            )
        indices, fresh = self._places(call)
        (revoked, rotated), erased = self._heard(fresh), self._erasing(fresh)
        self.past.revoked |= revoked
        self.past.rotated |= rotated
        self.past.erased |= erased
        self.erased |= erased
        self.state |= call.state
        for index, item in fresh.items():
            self._record(index, item.entry)
        return indices

    def end(self) -> tuple[Seen, list[Row]]:
        """The log's end with all that was added, and the tree's new rows."""
        if not self.rows:
            return self.before, []
        edge, nodes = self.before.edge.grow([leaf_hash(row["record"]) for row in self.rows])
        checkpoint = Checkpoint(self.before.head.origin, edge.size, edge.root)
        return Seen(sign_head(self.key, checkpoint, self.time), self.rows[-1]["link"], edge), nodes

    def _places(self, call: Call) -> tuple[list[int], dict[int, Item]]:
        """The index of each of the call's entries; by it, those that are not recorded yet."""
        indices: list[int] = []
        fresh: dict[int, Item] = {}
        keys = ChainMap({}, self.past.keys)
        for item in call.items:
            entry = item.entry
            index = _recorded_index(entry, keys)
            if index is None:
                index = self.size + len(fresh)
                if (entry.kind == "genesis") != (index == 0):
                    raise LedgerError(
                        f"Entry {index} cannot be {entry.kind!r}: a log has one genesis, and it is entry 0."
                    )
                fresh[index] = item
                if entry.key is not None:
                    keys[entry.key] = (index, entry.content)
            indices.append(index)
        return indices, fresh

    def _heard(self, fresh: Mapping[int, Item]) -> tuple[dict[str, int], dict[str, tuple[int, str]]]:
        """The revocations and changes of keys among new entries, none of which may hold a word that comes too late."""
        revoked, rotated = ChainMap({}, self.past.revoked), ChainMap({}, self.past.rotated)
        for index, item in fresh.items():
            _require_keys(item, rotated)
            for name in sorted(item.speakers & revoked.keys()):
                raise LedgerError(
                    f"{name} was revoked by entry {revoked[name]}, before its word was recorded. "
                    "Nothing was recorded; decide the step again without it."
                )
            if item.entry.kind == "member.revoke":
                revoked[item.entry.body["member"]] = index
            if item.entry.kind == "member.rotate":
                rotated[item.entry.body["member"]] = (index, key_of(item.entry.body))
        return dict(revoked.maps[0]), dict(rotated.maps[0])

    def _erasing(self, fresh: Mapping[int, Item]) -> dict[str, int]:
        """The payloads that new entries erase: held ones; and none may bring back what was erased."""
        erased, brought = ChainMap({}, self.past.erased), set[str]()
        for index, item in fresh.items():
            for name in item.to_erase:
                if name not in erased and name not in brought and name not in self.payloads.keys() | self.past.held:
                    raise LedgerError(f"The ledger holds no payload {name}: there is nothing to erase.")
                erased.setdefault(name, index)
            for name in item.entry.payloads:
                if name in erased:
                    raise LedgerError(
                        f"The payload {name} was erased by entry {erased[name]} and cannot come back: salt it anew."
                    )
                brought.add(name)
        return dict(erased.maps[0])

    def _record(self, index: int, entry: Entry) -> None:
        previous = self.rows[-1]["link"] if self.rows else self.before.link
        record = record_bytes(entry, index, previous, self.time)
        link = next_link(index, previous, record)
        signature = self.key.sign(entry_text(self.before.head.origin, index, link))
        self.rows.append(
            {
                "position": index,
                "record": record,
                "link": link,
                "signature": base64.b64encode(signature).decode(),
                "content": entry.content,
                "key": entry.key,
                "kind": entry.kind,
                "study": study(entry.body),
            }
        )
        self.payloads |= entry.payloads
        if entry.key is not None:
            self.past.keys[entry.key] = (index, entry.content)


def affair(kind: str, body: Mapping[str, Any]) -> str | None:
    """Whose affair an entry is: a study's, or (None) the members', to whom also belongs what they change in a study."""
    return None if kind.startswith("federation.") else study(body)


def study(body: Mapping[str, Any]) -> str | None:
    """The study that a body names."""
    found = body.get("study")
    return found if isinstance(found, str) else None


def key_of(body: Mapping[str, Any]) -> str:
    """The id of the signing key that an admission or a change of keys records."""
    return VerifyKey.from_text(body["key"])[1].id


def _require_keys(item: Item, rotated: Mapping[str, tuple[int, str]]) -> None:
    """No word is recorded under a key that its speaker gave up: an auditor would refuse the whole ledger."""
    for name, envelope in item.words:
        index, key = rotated.get(name, (0, ""))
        if key and f'"keyid":"{key}"' not in envelope:
            raise LedgerError(
                f"{name} changed its key by entry {index}, before its word under the old one was recorded. Nothing was "
                "recorded; decide the step again without it."
            )


def _spoken(value: Any) -> Iterator[tuple[str, str]]:
    """The members whose envelopes stand in a body, with these."""
    if isinstance(value, Mapping):
        if "envelope" in value and isinstance(value.get("member"), str):
            yield value["member"], str(value["envelope"])
        for item in value.values():
            yield from _spoken(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _spoken(item)


def _recorded_index(entry: Entry, known: Mapping[str, tuple[int, str]]) -> int | None:
    if entry.key is None or entry.key not in known:
        return None
    index, content = known[entry.key]
    if content != entry.content:
        raise LedgerError(
            f"The key {entry.key!r} stands at entry {index} with another content "
            f"(SHA-256 {content}, now {entry.content}): what is recorded cannot be changed."
        )
    return index
