"""A forger's bench: bundles that hold together in all but what a test breaks.

Whoever has the log's key can record anything and sign it; whoever has a member's key can say anything. Chain, tree,
notes and cosignatures are made here from hashes and keys alone, by the definitions, so that neither the writer nor the
verifier is believed about them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from causaldao.ledger.entry import Entry
from causaldao.signing import SigningKey, Statement, VerifyKey, canonical, digest, seal

ORIGIN = "causaldao.example/north"
FEDERATION = "north"
STUDY = hashlib.sha256(b"a study").hexdigest()
TIME = "2026-01-31T12:00:00.000Z"
LOG_KEY = SigningKey.from_seed(b"L" * 32)
CHANGES = ("member.admit", "member.rotate", "member.revoke", "federation.faulty")
VOTED = (*CHANGES, "federation.edit", "federation.policy")

Document = dict[str, Any]


def signing(member: str) -> SigningKey:
    """The key with which a member signs what it says."""
    return SigningKey.from_seed(member.encode().ljust(32, b"."))


def witness(member: str) -> SigningKey:
    """The key with which a member's witness cosigns."""
    return SigningKey.from_seed(f"witness {member}".encode().ljust(32, b"."))


def vkey(name: str, key: SigningKey | VerifyKey, kind: int = 1) -> str:
    """A verifier key of C2SP signed-note."""
    public = key.public if isinstance(key, SigningKey) else key
    typed = bytes([kind]) + public.raw
    return f"{name}+{_key_id(name, typed).hex()}+{base64.b64encode(typed).decode()}"


def policy_text(
    members: Collection[str],
    witnesses: Sequence[str] = (),
    quorum: int = 0,
    log: SigningKey = LOG_KEY,
    origin: str = ORIGIN,
) -> str:
    """A policy with a group of witnesses; members and witnesses under their own names."""
    lines = [f"log {vkey(origin, log)}", *(f"witness {name} {vkey(name, witness(name), 4)}" for name in witnesses)]
    lines += [f"group all-of-them {quorum} {' '.join(witnesses)}", "quorum all-of-them"] if quorum else ["quorum none"]
    lines += [f"# causaldao member {vkey(name, signing(name))}" for name in members]
    return "\n".join([*lines, ""])


def signature_line(name: str, kind: int, key: SigningKey, signature: bytes) -> str:
    """A signature line of a note, with its end."""
    key_id = _key_id(name, bytes([kind]) + key.public.raw)
    return f"— {name} {base64.b64encode(key_id + signature).decode()}\n"


def cosignature(text: str, name: str, key: SigningKey | None = None, time: int = 1_700_000_000) -> str:
    """A timestamped cosignature of a checkpoint's text."""
    key = key or witness(name)
    signature = key.sign(f"cosignature/v1\ntime {time}\n{text}".encode())
    return signature_line(name, 4, key, time.to_bytes(8, "big") + signature)


def note(text: str, log: SigningKey = LOG_KEY, cosigners: Mapping[str, SigningKey] | None = None) -> str:
    """The signed note of a checkpoint's text."""
    lines = [signature_line(text.split("\n")[0], 1, log, log.sign(text.encode()))]
    return "".join(
        [text, "\n", *lines, *(cosignature(text, name, key) for name, key in sorted((cosigners or {}).items()))]
    )


def tree(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash by its definition (RFC 9162, 2.1.1)."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return _hash(b"\x01", tree(leaves[:split]), tree(leaves[split:]))


def path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The inclusion proof by its definition (RFC 9162, 2.1.3.1)."""
    if len(leaves) < 2:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = leaves[:split], leaves[split:]
    return [*path(left, index), tree(right)] if index < split else [*path(right, index - split), tree(left)]


class Forge:
    """A ledger in the making; whatever is added is signed, right or wrong."""

    def __init__(self, origin: str = ORIGIN, log: SigningKey = LOG_KEY) -> None:
        self.origin, self.log, self.epoch, self.federation = origin, log, 0, FEDERATION
        self.keys: dict[str, SigningKey] = {}  # of those who sign with another key than `signing`
        self.items: list[dict[str, Any]] = []
        self.payloads: dict[str, str] = {}
        self.records: list[bytes] = []
        self.leaves: list[bytes] = []
        self.link = _hash(b"\x03", origin.encode()).hex()

    @property
    def size(self) -> int:
        return len(self.records)

    @property
    def checkpoint(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(tree(self.leaves)).decode()}\n"

    def root(self, size: int) -> str:
        return tree(self.leaves[:size]).hex()

    def add(
        self, kind: str, body: Mapping[str, Any], payloads: Mapping[str, bytes] | None = None, **fields: Any
    ) -> int:
        """One entry; ``fields`` replace those of the record. Returns its index."""
        self.payloads |= {name: base64.b64encode(data).decode() for name, data in (payloads or {}).items()}
        record = {"kind": kind, "body": dict(body), "payloads": sorted(payloads or {}), "time": TIME, **fields}
        return self.add_record(record)

    def add_record(self, record: dict[str, Any]) -> int:
        index = len(self.records)
        record = record | {"index": index, "previous": self.link}
        data = canonical(doubles(record))
        leaf = _hash(b"\x00", data)
        self.link = _hash(b"\x02", index.to_bytes(8, "big"), bytes.fromhex(self.link), leaf).hex()
        signature = self.log.sign(f"causaldao-entry/1\n{self.origin}\n{index}\n{self.link}\n".encode())
        self.items.append({"record": record, "signature": base64.b64encode(signature).decode()})
        self.records.append(data)
        self.leaves.append(leaf)
        self.epoch += record["kind"] in CHANGES
        if record["kind"] == "genesis" and isinstance(record["body"], dict):
            self.federation = record["body"].get("federation")
        return index

    def take(self, *entries: Entry) -> Forge:
        for entry in entries:
            self.add(entry.kind, entry.body, entry.payloads)
        return self

    def genesis(self, faulty: int = 0) -> Forge:
        self.add("genesis", {"federation": FEDERATION, "faulty": faulty})
        return self

    def admission(self, member: str, key: SigningKey | None = None, watch: SigningKey | None = None) -> dict[str, Any]:
        """The body of an admission, or of a rotation, as it would be recorded next."""
        return {
            "member": member, "key": vkey(member, key or signing(member)), "epoch": self.epoch,
            "witness": vkey(member, watch or witness(member), 4),
        }  # fmt: skip

    def admit(self, *members: str) -> Forge:
        for member in members:
            self.add("member.admit", self.admission(member))
        return self

    def propose(self, study: str = STUDY) -> Forge:
        self.add("study.proposed", {"study": study})
        return self

    def vote(
        self, member: str, kind: str, body: Mapping[str, Any], /, key: SigningKey | None = None, **changes: Any
    ) -> Document:
        """A member's vote for an entry that would be recorded next; ``changes`` are of its statement, or its body."""
        size = changes.pop("size", self.size)
        motion = {"kind": kind, "body": {name: item for name, item in body.items() if name != "votes"}}
        content = {"motion": hashlib.sha256(canonical(doubles(motion))).hexdigest(), "size": size}
        content |= changes.pop("content", {})
        said = {
            "kind": "vote", "study": "", "epoch": self.epoch, "body": content, "federation": self.federation,
        }  # fmt: skip
        said["parent"] = self.root(min(size, self.size))
        return word(member, key or self.keys.get(member), **{**said, **changes})

    def decide(self, kind: str, body: Mapping[str, Any], voters: Collection[str]) -> int:
        """Record what these members vote for."""
        return self.add(kind, {**body, "votes": [self.vote(voter, kind, body) for voter in voters]})

    def approve(self, *members: str, study: str = STUDY) -> int:
        approvals = [word(member, kind="rollcall", study=study) for member in members]
        return self.add("study.approved", {"study": study, "approvals": approvals})

    def release(self, *members: str, study: str = STUDY, **said: Any) -> int:
        """A release; ``said`` is what the members sign instead of what is released."""
        released = {"model": "0" * 64, "dag": {"edges": [["a", "b"]]}}
        votes = [word(member, kind="release", study=study, body=released | said) for member in members]
        return self.add("release", {"study": study, **released, "votes": votes})

    def document(self, cosigners: Mapping[str, SigningKey] | None = None) -> Document:
        header = {"format": "causaldao-bundle/2", "origin": self.origin}
        whole = note(self.checkpoint, self.log, cosigners)
        return {"header": header, "entries": self.items, "payloads": self.payloads, "note": whole}

    def bundle(self, cosigners: Collection[str] = ()) -> bytes:
        return write(self.document({name: witness(name) for name in cosigners}))

    def receipt(self, index: int, cosigners: Collection[str] = ()) -> str:
        hashes = (base64.b64encode(sibling).decode() for sibling in path(self.leaves, index))
        signed = note(self.checkpoint, self.log, {name: witness(name) for name in cosigners})
        return "\n".join(["c2sp.org/tlog-proof@v1", f"index {index}", *hashes, "", signed])


MEMBERS = ("ada", "bob", "cyd")
NEW_KEY = SigningKey.from_seed(b"N" * 32)  # to which bob's signing key is rotated


def history() -> Forge:
    """A ledger with an entry of every sort that the verifier looks at."""
    forge = Forge().genesis(faulty=1).admit(*MEMBERS).propose()
    forge.approve(*MEMBERS)
    for member in MEMBERS:
        data = b"moments of " + member.encode()
        name, _ = payload_name(data)
        manifest = [{"dtype": "uint8", "name": "moments", "sha256": name, "shape": [len(data)]}]
        signed_digest = hashlib.sha256(canonical(manifest)).hexdigest()
        said = word(member, kind="evidence", digest=signed_digest, body={"noise": 12.5})
        forge.add("evidence", {**said, "manifest": manifest, "round": 0, "study": STUDY}, {name: data})
    forge.add("aggregate", {"gram": [[1.0, 1e-7, -0.1], [1e21, 123456.789, 5e-324]], "note": 'ü \u2028 "quoted" \\ 😀'})
    for member in MEMBERS:
        forge.add("ballot", word(member, kind="ballot", body={"marks": [1, 0, -1]}))
    forge.release(*MEMBERS)
    forge.decide("member.admit", forge.admission("dan"), MEMBERS)
    forge.decide("member.rotate", forge.admission("bob", NEW_KEY), ("ada", "cyd", "dan"))
    forge.keys["bob"] = NEW_KEY
    forge.decide("federation.policy", {"name": "privacy", "sha256": "1" * 64}, ("ada", "cyd", "dan"))
    edit = {"study": STUDY, "edge": ["a", "b"], "change": "remove", "reason": "not plausible"}
    forge.decide("federation.edit", edit, ("ada", "cyd", "dan"))
    forge.decide("member.revoke", {"member": "cyd", "reason": "left"}, ("ada", "cyd", "dan"))
    forge.decide("federation.faulty", {"faulty": 0}, ("ada", "bob", "dan"))
    forge.add("erasure", {"payloads": [payload_name(b"moments of cyd")[0]], "reason": "asked for"})
    forge.payloads.pop(payload_name(b"moments of cyd")[0])
    forge.add("study.closed", {"study": STUDY})
    return forge


def history_policy(quorum: int = 2) -> str:
    """The policy of `history`, with its members at the end as witnesses."""
    text = policy_text((*MEMBERS, "dan"), ("ada", "bob", "dan"), quorum)
    return text + f"# causaldao member {vkey('bob', NEW_KEY)}\n"


def word(member: str, /, key: SigningKey | None = None, **fields: Any) -> Document:
    """What a member says, with its name beside it as entries hold it."""
    said: dict[str, Any] = {
        "federation": FEDERATION, "study": STUDY, "round": 0, "member": member, "body": {}, "nonce": "", "parent": "",
        "digest": digest({}), **fields,
    }  # fmt: skip
    return {"member": member, "envelope": seal(Statement(**said), key or signing(member)).decode()}


def parse(bundle: bytes) -> Document:
    """A true bundle, in parts: header (without its counts), entries, payloads by name, note."""
    first, rest = bundle.split(b"\n", 1)
    header = json.loads(first)
    entries, payloads = header.pop("entries"), header.pop("payloads")
    *lines, whole = rest.split(b"\n", entries + payloads)
    named = {item["sha256"]: item["data"] for item in map(json.loads, lines[entries:])}
    return {"header": header, "entries": [*map(json.loads, lines[:entries])], "payloads": named, "note": whole.decode()}


def write(document: Document) -> bytes:
    """The bundle of its parts, canonical; what the header says goes before what is true."""
    payloads = [{"data": document["payloads"][name], "sha256": name} for name in sorted(document["payloads"])]
    header = {"entries": len(document["entries"]), "payloads": len(payloads), **document["header"]}
    lines = [header, *document["entries"], *payloads]
    return b"\n".join([*(canonical(doubles(line)) for line in lines), document["note"].encode()])


def reencode(bundle: bytes, change: Callable[[Document], object]) -> bytes:
    """A forger without a key: change the parsed bundle and write it canonically."""
    document = parse(bundle)
    change(document)
    return write(document)


def rewrite(
    bundle: bytes,
    log: SigningKey,
    change: Callable[[Document], object],
    voters: Mapping[str, SigningKey] | None = None,
    cosigners: Mapping[str, SigningKey] | None = None,
) -> bytes:
    """A forger with the log's key: change the parsed bundle, then make chain, tree, signatures and checkpoint fit.

    With the keys of ``voters`` the members are accomplices: what needs votes has them, of all who are members by then.
    """
    document = parse(bundle)
    change(document)
    forge, electorate = Forge(document["header"]["origin"], log), _Electorate(voters or {})
    for item in document["entries"]:
        record = item["record"]
        if voters:
            electorate.vote(forge, record)
        forge.add_record(record)
        electorate.learn(record)
    forge.payloads = document["payloads"]
    made = forge.document(cosigners)
    return write({**made, "header": {**made["header"], **document["header"]}})


class _Electorate:
    """Who may vote, as the entries follow one another."""

    def __init__(self, keys: Mapping[str, SigningKey]) -> None:
        self.keys, self.members, self.founding = keys, set[str](), True
        self.proposed: dict[str, set[str]] = {}

    def learn(self, record: Mapping[str, Any]) -> None:
        kind, body = record["kind"], record["body"]
        if kind == "member.admit":
            self.members.add(body["member"])
        elif kind == "member.revoke":
            self.members.discard(body["member"])
        elif kind == "study.proposed":
            self.founding = False
            self.proposed.setdefault(body["study"], set(self.members))

    def vote(self, forge: Forge, record: dict[str, Any]) -> None:
        kind, body = record["kind"], dict(record["body"])
        if kind in ("member.admit", "member.rotate"):
            body["epoch"] = forge.epoch
        if kind in VOTED and not self.founding:
            body["votes"] = [forge.vote(name, kind, body, self.keys[name]) for name in self._able(self.members)]
        elif kind == "release":
            said = {"dag": body.get("dag"), "model": body.get("model")}
            fields = {"kind": "release", "study": body.get("study"), "body": said, "federation": forge.federation}
            able = self._able(self.proposed.get(body.get("study", ""), set()) & self.members)
            body["votes"] = [word(name, self.keys[name], **fields) for name in able]
        record["body"] = body

    def _able(self, members: Collection[str]) -> list[str]:
        return sorted(set(self.keys) & set(members))


def payload_name(data: bytes) -> tuple[str, str]:
    """A payload as a bundle has it: its SHA-256 and its base64."""
    return hashlib.sha256(data).hexdigest(), base64.b64encode(data).decode()


def doubles(value: Any) -> Any:
    """Integers that JSON read from 1e20 and the like, as the doubles they are."""
    if isinstance(value, dict):
        return {name: doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [doubles(item) for item in value]
    return float(value) if type(value) is int and abs(value) > 2**53 else value


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def _key_id(name: str, typed: bytes) -> bytes:
    return _hash(name.encode(), b"\n", typed)[:4]
