"""Check a ledger's bundle, or a receipt, against a policy. These files trust nothing of the program that wrote them.

They share no code with the writer: the JSON reader is in `strict`, policies and signed checkpoints are read in
`policy`, what entries may say is in `rules`, chain and tree are here: some 950 lines of code, to be read, or rewritten
in another language, in one sitting (`helpers` only shares the work out). Ed25519 is that of `cryptography`. Standards:
RFC 8785 (canonical JSON), RFC 9162 2.1 (Merkle tree), DSSE v1 (members' envelopes), C2SP (policy, checkpoint,
cosignature, tlog-proof).

What is checked, in this order; the first fault is raised with its place:

1. **Bytes.** Bounds, before anything is parsed. Each line is canonical JSON, so no byte can be changed without changing
   a value.
2. **Log.** Record i names its index and the link before it: ``leaf = H(0x00 || record)``, ``link' = H(0x02 || uint64(i)
   || link || leaf)``, first link ``H(0x03 || origin)``.
3. **Members.** Who they are, and that they voted and spoke where they must: see `rules`.
4. **Signatures** of the log's key over each link, of the members' keys over their envelopes.
5. **Checkpoint.** Size and root are those of the entries; the log signed it, and as many witnesses cosigned it as the
   policy asks for. A bad cosignature of a known witness is a fault; those of others do not count.
6. **Payloads.** Exactly those that the records name, each with its hash; one that an ``erasure`` names may be missing.

What is *not* shown: that there is no later entry. A bundle of an older checkpoint is a true bundle of the ledger as it
was then. Whether decisions follow from what is recorded is for `causaldao audit`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from sys import intern
from typing import Any, NamedTuple

from causaldao.errors import LedgerError
from causaldao.ledger.helpers import Help, helped, parts, spread, uncollected
from causaldao.ledger.policy import MAX_NOTE, Checkpoint, Policy, open_checkpoint, signed
from causaldao.ledger.rules import Job, Known, Line, check_members
from causaldao.ledger.strict import MAX_DEPTH, fault, fields, read, read_all, reread, unbase64

__all__ = ["MAX_BYTES", "MAX_RECEIPT", "Line", "Policy", "Report", "verify", "verify_receipt"]

FORMAT = "causaldao-bundle/2"
MAX_BYTES = 1 << 30
MAX_RECEIPT = MAX_NOTE
MAX_LINE = 96 << 20
MAX_ENTRY = 8 << 20  # of the line of an entry, and of a record
POOLED = 2000  # entries from which on other processes help
CHUNK = 1000  # lines or signatures that a process checks at a time
RECORD = {"body": dict, "index": int, "kind": str, "payloads": list, "previous": str, "time": str}
KINDS = frozenset({
    "genesis", "member.admit", "member.rotate", "member.revoke", "federation.faulty", "federation.edit",
    "federation.policy", "erasure", "evidence", "pool", "ballot", "adopt", "effects", "estimate",
    "update", "aggregate", "release", "privacy.spend", "complaint", "equivocation",
    "study.draft", "study.proposed", "study.approved", "study.roll-call", "study.evidence",
    "study.ballots", "study.adopted", "study.training", "study.evaluated", "study.released", "study.closed",
    "study.aborted",
})  # fmt: skip
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}")
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")
# of an entry's line; 88 digits of base64 between the last two
_BEFORE, _BETWEEN, _BEHIND = b'{"record":', b',"signature":"', b'"}\n'
_TAIL = len(_BETWEEN) + 88 + len(_BEHIND)
_OPENING, _CLOSING = '{"record":{"body":', ',"index":'  # before and behind the body in an entry's line
_REST = re.compile(
    rf'{_CLOSING}([0-9]+),"kind":"([a-z.-]+)","payloads":\[("[0-9a-f",]+")?\],"previous":"(.{{64}})",'
    rf'"time":"({_TIME.pattern})"}},"signature":"(.{{88}})"}}\n',
    re.ASCII,
)
_UNLINKED = "it does not follow the entry before it: the link it names is another"
_UNSIGNED = "its signature is not one by the policy's log key over this entry"


@dataclass(frozen=True)
class Report:
    """What was verified: ``root`` is the tree's, 64 hex digits, ``time`` the last entry's.

    ``members`` are those admitted and not revoked at the end; ``faulty`` of them may lie, so ``quorum`` decide;
    ``unadmitted`` are those whom the policy names and no entry ever admits. ``cosigners`` are the policy's witnesses
    who cosigned; ``strangers`` signed too, with keys that it does not know. ``erased`` are the payloads that are
    missing because an entry erased them.
    """

    origin: str
    size: int
    root: str
    time: str
    entries: tuple[Line, ...]
    payloads: Mapping[str, bytes]
    members: tuple[str, ...]
    cosigners: tuple[str, ...]
    policy_fingerprint: str
    unadmitted: tuple[str, ...] = ()
    strangers: tuple[str, ...] = ()
    faulty: int = 0
    quorum: int = 1
    erased: tuple[str, ...] = ()


def verify(
    bundle: bytes,
    policy: Policy,
    max_bytes: int = MAX_BYTES,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: int | None = None,
) -> Report:
    """Verify a bundle; return what it holds, or raise LedgerError with the place of the first fault.

    The place is the index of an entry, or a section and the offset of a byte in the file. ``progress`` is told how many
    of all signatures are checked. ``processes`` share the work on a large bundle: None is one a core; 1 is none but
    this one, for a script that the others could not import.
    """
    if len(bundle) > max_bytes:
        raise fault("whole file", f"it has {len(bundle)} bytes, the bound is {max_bytes}; it was not parsed")
    file = BytesIO(bundle)
    entries, payload_lines = _check_header(file, policy)
    with helped(processes or os.cpu_count() or 1 if entries >= POOLED else 1) as helpers:
        with uncollected():
            chain = _check_chain(_chunks(file, entries, policy), policy, helpers)
            known = check_members(chain.lines, chain.speaking, chain.root, policy)
        _check_signatures(chain, known, progress, helpers)
    payloads = _read_payloads(file, payload_lines)
    checkpoint = _check_checkpoint(file, chain, policy)
    _check_payloads(payloads, chain.lines, known)
    return Report(
        origin=policy.origin,
        size=checkpoint.size,
        root=checkpoint.root.hex(),
        time=chain.lines[-1].time,
        entries=tuple(chain.lines),
        payloads={name: data for name, (data, _) in payloads.items()},
        members=tuple(sorted(known.keys)),
        cosigners=checkpoint.cosigners,
        policy_fingerprint=policy.fingerprint,
        unadmitted=tuple(sorted(set(policy.members) - set(known.keys) - set(known.revoked))),
        strangers=checkpoint.strangers,
        faulty=known.faulty,
        quorum=known.quorum,
        erased=tuple(sorted(known.erased - payloads.keys())),
    )


def verify_receipt(receipt: str | bytes, record: bytes, policy: Policy) -> Line:
    """The entry that a receipt (C2SP tlog-proof) proves to be in a checkpoint that enough witnesses cosigned.

    ``record`` is the entry's canonical bytes. What stands before and after it is not shown, so neither is whether it
    was allowed. Raises LedgerError.
    """
    data = receipt.encode(errors="surrogatepass") if isinstance(receipt, str) else receipt
    for what, part, bound in (("receipt", data, MAX_RECEIPT), ("record", record, MAX_ENTRY)):
        if len(part) > bound:
            raise fault(what, f"it has {len(part)} bytes, the bound is {bound}; it was not parsed")
    head, _, note = data.partition(b"\n\n")
    index, path = _parse_proof(head)
    checkpoint = open_checkpoint(note, policy, "receipt", ordered=False)
    if not index < checkpoint.size or _climb(_leaf(record), index, checkpoint.size, path) != checkpoint.root:
        raise fault("receipt", f"it does not prove that this record is entry {index} of {checkpoint.size}")
    value = read(record, "record")
    _check_record(value, index, "record")
    return Line(index, value["time"], value["kind"], value["body"], tuple(value["payloads"]))


# 1. Bytes


def _read_line(file: BytesIO, section: str, most: int) -> bytes:
    """The next line, without its end, if it has no more than ``most`` bytes."""
    start, line = file.tell(), file.readline(most + 1)
    _require_end(line, f"{section}, byte {start}", most)
    return line[:-1]


def _require_end(line: bytes, place: str, most: int) -> None:
    if not line.endswith(b"\n"):
        raise fault(place, f"expected a line of at most {most} bytes and its end")


def _check_header(file: BytesIO, policy: Policy) -> tuple[int, int]:
    place = "section header, byte 0"
    header = read(_read_line(file, "section header", MAX_ENTRY), "section header", 0)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise fault(place, f"expected the format {FORMAT!r}, found {found!r}")
    fields(header, {"entries": int, "format": str, "origin": str, "payloads": int}, place)
    if header["origin"] != policy.origin:
        raise fault(place, f"the log is {header['origin']!r}, the policy trusts {policy.origin!r}")
    if header["entries"] < 1 or header["payloads"] < 0:
        raise fault(place, f"it has {header['entries']} entries, not even a genesis, or {header['payloads']} payloads")
    return header["entries"], header["payloads"]


class _Chunk(NamedTuple):
    """Lines of entries with their ends, from index ``first`` and byte ``start`` on, and the log they should be of."""

    first: int
    start: int
    lines: list[bytes]
    origin: str
    log: bytes


class _Said(NamedTuple):
    """What the entries of a chunk say: each thing in a column of its own, which is quicker than an object an entry."""

    previous: Sequence[str]
    times: Sequence[str]
    kinds: Sequence[str]
    payloads: Sequence[list[str]]
    bodies: Sequence[dict[str, Any]]
    signatures: Sequence[bytes]


# A chunk whose entries follow one another: by entry the link behind it and its leaf, and which may hold envelopes.
_Checked = tuple[_Said, list[bytes], list[bytes], list[int]]


def _chunks(file: BytesIO, entries: int, policy: Policy) -> Iterator[_Chunk]:
    for first in range(0, entries, CHUNK):
        start = file.tell()
        lines = [file.readline(MAX_ENTRY + 1) for _ in range(min(CHUNK, entries - first))]
        yield _Chunk(first, start, lines, policy.origin, policy.log)
        if not lines[-1]:
            return  # the file ends too soon, which is the chunk's fault


def _check_chunk(chunk: _Chunk) -> _Checked:
    try:
        said = _read_at_once(chunk)
    except (ValueError, LedgerError):
        said = _read_one_by_one(chunk)
    leaves = [_leaf(_record(line)) for line in chunk.lines]
    speaking = [index for index, line in enumerate(chunk.lines, chunk.first) if b'"envelope"' in line]
    return said, _follow(chunk, said, leaves), leaves, speaking


def _check_away(chunk: _Chunk) -> _Checked:
    """`_check_chunk` in another process: this one reads the bodies again sooner than it would be sent them."""
    said, links, leaves, speaking = _check_chunk(chunk)
    return said._replace(bodies=(), previous=said.previous[:1]), links, leaves, speaking


def _read_one_by_one(chunk: _Chunk) -> _Said:
    """What the lines say; LedgerError at the first fault."""
    starts = itertools.accumulate(map(len, chunk.lines), initial=chunk.start)
    lines = [*zip(map("entry {}".format, itertools.count(chunk.first)), starts, chunk.lines, strict=False)]
    for place, start, line in lines:
        _require_end(line, f"{place}, byte {start}", MAX_ENTRY)
    signatures = [_signature(line, place, start) for place, start, line in lines]
    records = [read(_record(line), place, start + len(_BEFORE)) for place, start, line in lines]
    for index, record in enumerate(records, chunk.first):
        _check_record(record, index, f"entry {index}")
    names = ("previous", "time", "kind", "payloads", "body")
    previous, times, kinds, payloads, bodies = ([record[name] for record in records] for name in names)
    return _Said(previous, times, kinds, payloads, bodies, signatures)


def _read_at_once(chunk: _Chunk) -> _Said:
    """The same, sooner; ValueError or LedgerError, which names no place, if anything is not as it must be.

    What stands around a body has one form (`_REST`): with a canonical body inside, the whole record is canonical, and
    only the body has to be parsed and written anew.
    """
    lines = [line.decode() for line in chunk.lines]
    rests = [_REST.fullmatch(line, line.rfind(_CLOSING)) for line in lines if line.startswith(_OPENING)]
    framed = [*zip(lines, filter(None, rests), strict=True)]
    bodies = read_all([line[len(_OPENING) : rest.start()] for line, rest in framed], MAX_DEPTH - 1)
    columns = zip(*(rest.groups() for _, rest in framed), strict=True)
    indices, kinds, listed, previous, times, encoded = columns
    payloads = [names[1:-1].split('","') if names else [] for names in listed]
    numbers, hashes = range(chunk.first, chunk.first + len(lines)), "".join(previous)
    if not (
        indices == tuple(map(str, numbers))
        and KINDS.issuperset(kinds)
        and [kind == "genesis" for kind in kinds] == [index == 0 for index in numbers]
        and all(map(_are_hashes, payloads))
        and {*map(type, bodies)} == {dict}
        and hashes == bytes.fromhex(hashes).hex()
    ):
        raise ValueError
    signatures = [unbase64(signature, "", 64) for signature in encoded]
    return _Said(previous, times, [*map(intern, kinds)], payloads, bodies, signatures)


def _signature(line: bytes, place: str, start: int) -> bytes:
    """The signature of an entry's line, which must be ``{"record":…,"signature":base64}``."""
    if line.startswith(_BEFORE) and line[-_TAIL : -_TAIL + len(_BETWEEN)] == _BETWEEN and line.endswith(_BEHIND):
        return unbase64(line[-_TAIL + len(_BETWEEN) : -len(_BEHIND)].decode("latin-1"), place, 64)
    fields(read(line[:-1], place, start), {"record": dict, "signature": str}, place)
    raise fault(place, "its signature is not 64 bytes in base64")


def _record(line: bytes) -> bytes:
    return line[len(_BEFORE) : -_TAIL]


def _body(line: bytes) -> bytes:
    return line[len(_OPENING) : line.rfind(_CLOSING.encode())]


def _follow(chunk: _Chunk, said: _Said, leaves: list[bytes]) -> list[bytes]:
    """The link behind each entry. Of two that do not follow each other the first is at fault if it is not signed."""
    links = [bytes.fromhex(said.previous[0])]
    for index, leaf in enumerate(leaves, chunk.first):
        links.append(sha256(b"\x02" + index.to_bytes(8, "big") + links[-1] + leaf).digest())
    if b"".join(links[:-1]).hex() != "".join(said.previous):
        k = next(k for k, (link, name) in enumerate(zip(links, said.previous, strict=False)) if link.hex() != name)
        _require_signed(chunk, chunk.first + k - 1, links[k], said.signatures[k - 1])
        raise fault(f"entry {chunk.first + k}", _UNLINKED)
    return links[1:]


def _entry_text(origin: str, index: int, link: bytes) -> bytes:
    return f"causaldao-entry/1\n{origin}\n{index}\n{link.hex()}\n".encode()


def _check_record(record: Any, index: int, place: str) -> None:
    fields(record, RECORD, place)
    kind, time, names = record["kind"], record["time"], record["payloads"]
    if record["index"] != index:
        raise fault(place, f"its record says index {record['index']}: an entry was removed, added or moved")
    if kind not in KINDS or (kind == "genesis") != (index == 0):
        raise fault(place, f"the kind {kind!r} is unknown, or not allowed here (entry 0 is the genesis)")
    if not _TIME.fullmatch(time):
        raise fault(place, f"the time {time!r} is not of the form 2025-01-31T12:00:00.000Z")
    if not _are_hashes(names):
        raise fault(place, "its payloads are not a list of SHA-256, sorted, each once")
    if not _is_hash(record["previous"]):
        raise fault(place, "the link it names is not 64 hexadecimal digits")


def _is_hash(name: Any) -> bool:
    return isinstance(name, str) and _HEX.fullmatch(name) is not None


def _are_hashes(names: Sequence[Any]) -> bool:
    """Sorted, each once."""
    return not names or (all(map(_is_hash, names)) and [*names] == sorted(set(names)))


# 2. Log: chain and tree


@dataclass
class _Chain:
    """The entries in order; ``levels[k][i]`` is the hash of the complete subtree of the leaves from i·2^k on."""

    lines: list[Line] = field(default_factory=list)
    links: list[bytes] = field(default_factory=list)
    signatures: list[bytes] = field(default_factory=list)
    speaking: set[int] = field(default_factory=set)
    levels: list[list[bytes]] = field(default_factory=lambda: [[]])

    def grow(self) -> None:
        """Make what of all levels the leaves give by now."""
        above = 0
        while len(below := self.levels[above]) > 1:
            above += 1
            self.levels += [] if above < len(self.levels) else [[]]
            made = 2 * len(self.levels[above])
            self.levels[above] += map(_node, below[made::2], below[made + 1 :: 2])

    def root(self, size: int) -> bytes:
        """The Merkle tree hash of the first ``size`` ≥ 1 leaves (RFC 9162, 2.1.1): its complete subtrees, joined from
        the right.
        """
        root = b""
        for level, hashes in enumerate(self.levels):
            if size >> level & 1:
                subtree = hashes[(size >> level) - 1]
                root = _node(subtree, root) if root else subtree
        return root


def _check_chain(chunks: Iterator[_Chunk], policy: Policy, helpers: Help | None) -> _Chain:
    chain, link = _Chain(), sha256(b"\x03" + policy.origin.encode()).digest()
    for chunk, (said, links, leaves, speaking) in spread(_check_chunk, _check_away, chunks, helpers):
        if said.previous[0] != link.hex():
            if chain.links:
                _require_signed(chunk, chunk.first - 1, link, chain.signatures[-1])
            raise fault(f"entry {chunk.first}", _UNLINKED)
        link = links[-1]
        bodies = said.bodies or reread([_body(line) for line in chunk.lines])
        columns = said.times, said.kinds, bodies, map(tuple[str, ...], said.payloads)
        chain.lines += map(Line, itertools.count(chunk.first), *columns)
        chain.links += links
        chain.signatures += said.signatures
        chain.speaking.update(speaking)
        chain.levels[0] += leaves
        chain.grow()
    return chain


def _require_signed(chunk: _Chunk, index: int, link: bytes, signature: bytes) -> None:
    if not signed(chunk.log, signature, _entry_text(chunk.origin, index, link)):
        raise fault(f"entry {index}", _UNSIGNED)


def _leaf(record: bytes) -> bytes:
    return sha256(b"\x00" + record).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _climb(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root to which an inclusion proof leads (RFC 9162, 2.1.3.2); None if it is too short or too long."""
    root, last = leaf, size - 1
    for sibling in path:
        if last == 0:
            return None
        if index & 1 or index == last:
            root = _node(sibling, root)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            root = _node(root, sibling)
        index, last = index >> 1, last >> 1
    return root if last == 0 else None


def _parse_proof(head: bytes) -> tuple[int, list[bytes]]:
    """Index and hashes of a tlog-proof, above its checkpoint."""
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise fault("receipt", "it is not a c2sp.org/tlog-proof@v1") from error
    if lines and lines[0].startswith("extra "):
        unbase64(lines.pop(0).removeprefix("extra "), "receipt")
    index = _INDEX.fullmatch(lines[0]) if lines else None
    if first != "c2sp.org/tlog-proof@v1" or index is None or len(lines) > 64:
        raise fault("receipt", "it is not a c2sp.org/tlog-proof@v1 with an index and at most 63 hashes")
    return int(index[1]), [unbase64(line, "receipt", 32) for line in lines[1:]]


# 4. Signatures


def _check_signatures(chain: _Chain, known: Known, progress: Callable[[int, int], None], helpers: Help | None) -> None:
    policy, total, done = known.policy, len(chain.lines) + len(known.jobs), 0
    entries = (
        Job(index, _UNSIGNED, (policy.log,), signature, _entry_text(policy.origin, index, link))
        for index, (link, signature) in enumerate(zip(chain.links, chain.signatures, strict=True))
    )
    batches = parts(itertools.chain(entries, known.jobs), CHUNK)
    for batch, unsigned in spread(_first_unsigned, _first_unsigned, batches, helpers):
        if unsigned is not None:
            raise fault(f"entry {unsigned.entry}", unsigned.what)
        done += len(batch)
        progress(done, total)


def _first_unsigned(jobs: Sequence[Job]) -> Job | None:
    unsigned = (job for job in jobs if not any(signed(key, job.signature, job.text) for key in job.keys))
    return next(unsigned, None)


# 5. Checkpoint, 6. payloads


def _check_checkpoint(file: BytesIO, chain: _Chain, policy: Policy) -> Checkpoint:
    place, size = f"section checkpoint, byte {file.tell()}", len(chain.lines)
    checkpoint = open_checkpoint(file.read(MAX_NOTE + 1), policy, place, ordered=True)
    if checkpoint.size != size:
        raise fault(place, f"it is of {checkpoint.size} entries, the file has {size}")
    if checkpoint.root != chain.root(size):
        raise fault(place, f"its root is {checkpoint.root.hex()}, the entries give {chain.root(size).hex()}")
    return checkpoint


def _read_payloads(file: BytesIO, count: int) -> dict[str, tuple[bytes, str]]:
    """Each payload and its place, by name; sorted, so that there is one order."""
    payloads, last = dict[str, tuple[bytes, str]](), ""
    for _ in range(count):
        place, start = f"section payloads, byte {file.tell()}", file.tell()
        value = read(_read_line(file, "section payloads", MAX_LINE), "section payloads", start)
        fields(value, {"data": str, "sha256": str}, place)
        if not last < value["sha256"]:
            raise fault(place, f"the payload named {value['sha256'][:64]!r} is not behind {last!r}, in order")
        last = value["sha256"]
        payloads[last] = unbase64(value["data"], place), place
    return payloads


def _check_payloads(payloads: Mapping[str, tuple[bytes, str]], lines: Sequence[Line], known: Known) -> None:
    for name, (data, place) in payloads.items():
        found = sha256(data).hexdigest()
        if found != name:
            raise fault(place, f"the payload named {name} has the SHA-256 {found}")
        if name not in known.named:
            raise fault(place, f"no entry speaks of the payload {name}")
    missing = known.named - payloads.keys() - known.erased
    for line in lines if missing else ():
        for name in line.payloads:
            if name in missing:
                raise fault(f"entry {line.index}", f"its payload {name} is not in the file, and no entry erases it")
