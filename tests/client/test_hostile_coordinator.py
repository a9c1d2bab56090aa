"""What a coordinator that lies must not get out of an honest member: its cosignature, its rows' noise, its disk.

The coordinator here holds the log's real key and writes what it likes: records of any bytes, trees that fork, trails
that leave things out. What is tested is the one member that it talks to, in a folder as a real one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from causaldao import governance
from causaldao.client.enrolment import WITNESS_FILE
from causaldao.client.node import Node
from causaldao.client.receipts import Receipts, Word
from causaldao.client.witnessing import Attendant, create_state, open_witness
from causaldao.errors import CausalDAOError, LedgerError
from causaldao.ledger import merkle
from causaldao.ledger.bundle import write_policy
from causaldao.ledger.note import Checkpoint, cosign, proof_text, sign_checkpoint, with_cosignatures
from causaldao.ledger.verify import Policy, verify, verify_receipt
from causaldao.ledger.witness import Witness
from causaldao.members import Member
from causaldao.messages import REFUSAL, Parcel
from causaldao.signing import SigningKey, Statement, canonical, peek, sha256
from causaldao.trail import Own, Shown, Trail
from tests.client.test_node import COORD, KEY, STUDY, node, request, rollcall, training
from tests.ledger.forge import MEMBERS, Forge, policy_text, word
from tests.ledger.forge import STUDY as FORGED

ORIGIN = "test/log"
NAMES = ("north", "south", "west", "east")
KEYS = {name: KEY if name == "north" else SigningKey.from_seed(name.encode().ljust(32, b"s")) for name in NAMES}
WATCH = {name: SigningKey.from_seed(name.encode().ljust(32, b"w")) for name in NAMES}
ALL = tuple(NAMES)


def member(name: str, seed: bytes = b"") -> Member:
    """A member with the keys above, or of a coordinator's own making."""
    if name in KEYS and not seed:
        return Member(name, KEYS[name].public, WATCH[name].public)
    return Member(name, sybil(name, b"s").public, sybil(name, b"w").public)


def sybil(name: str, purpose: bytes) -> SigningKey:
    return SigningKey.from_seed((b"sybil" + name.encode() + purpose).ljust(32, b"!"))


def admission(name: str, number: int) -> dict[str, Any]:
    return governance.admission(member(name), number)


class Ledger:
    """A log whose key the coordinator holds: any records, in any order, forked at will."""

    def __init__(self, records: Sequence[bytes] = ()) -> None:
        self.records = list(records)

    def fork(self) -> Ledger:
        return Ledger(self.records)

    @property
    def leaves(self) -> list[bytes]:
        return [merkle.leaf_hash(record) for record in self.records]

    def add(self, kind: str, body: Mapping[str, Any]) -> int:
        index = len(self.records)
        return self.add_record(
            canonical(
                {
                    "body": dict(body), "index": index, "kind": kind, "payloads": [], "previous": "0" * 64,
                    "time": "2026-01-01T00:00:00.000Z",
                }
            )
        )  # fmt: skip

    def add_record(self, record: bytes) -> int:
        self.records.append(record)
        return len(self.records) - 1

    def pad(self, count: int, of: str = "padding") -> Ledger:
        for number in range(count):
            self.add("study.draft", {"study": f"{of} {number}"})
        return self

    def checkpoint(self, size: int | None = None) -> Checkpoint:
        leaves = self.leaves[: len(self.records) if size is None else size]
        return Checkpoint(ORIGIN, len(leaves), merkle.root(leaves))

    def note(self, size: int | None = None, by: Sequence[str] = (), keys: Mapping[str, SigningKey] = WATCH) -> str:
        checkpoint = self.checkpoint(size)
        lines = [cosign(checkpoint, name, keys[name], 1_700_000_000) for name in by]
        return with_cosignatures(sign_checkpoint(checkpoint, COORD), lines)

    def proof(self, old: int) -> tuple[bytes, ...]:
        return tuple(merkle.consistency_proof(self.leaves, old))

    def shown(self, index: int, size: int | None = None) -> Shown:
        leaves = self.leaves[: len(self.records) if size is None else size]
        return Shown(index, self.records[index], tuple(merkle.inclusion_proof(leaves, index)))

    def trail(
        self,
        members: Sequence[int] = (),
        agreed: int = 0,
        by: Sequence[str] = ALL,
        receipts: Sequence[int] = (),
        **changed: Any,
    ) -> bytes:
        """What a request shows: the newest checkpoint, proofs from every size, and what is asked for."""
        size = len(self.records)
        trail = Trail(
            self.note(),
            proofs={old: self.proof(old) for old in range(1, size + 1)},
            agreed=self.note(agreed, by) if agreed else "",
            agreed_proof=self.proof(agreed) if agreed else (),
            members=tuple(self.shown(index) for index in members),
            receipts=tuple(self.shown(index, agreed or None) for index in receipts),
        )
        return replace(trail, **changed).pack()

    def vote(self, name: str, kind: str, body: Mapping[str, Any], epoch: int, size: int, **changed: Any) -> str:
        given: dict[str, Any] = {
            "federation": "fed", "member": name, "epoch": epoch, "motion": governance.motion(kind, body), "size": size,
            "root": merkle.root(self.leaves[:size]).hex(), **changed,
        }  # fmt: skip
        return governance.make_vote(KEYS[name], **given)


def founded(faulty: int = 1, names: Sequence[str] = NAMES, propose: bool = True) -> Ledger:
    ledger = Ledger()
    ledger.add("genesis", {"federation": "fed", "faulty": faulty})
    for number, name in enumerate(names):
        ledger.add("member.admit", admission(name, number))
    if propose:
        ledger.add("study.proposed", {"study": STUDY.hash, "document": STUDY.to_json()})
    return ledger


FOUNDING = tuple(range(6))  # the entries that say who the members are, of `founded`


class Home:
    """The member under attack: its node, its folder, its witness."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.node: Node = node(folder, origin=ORIGIN, **config)
        WATCH["north"].save(folder / WITNESS_FILE)
        create_state(folder, ORIGIN)
        self.folder = folder
        self.attendant = Attendant(self.node, lambda: 1_700_000_000)

    def ask(self, parcel: Parcel, trail: bytes) -> Statement:
        """What it signed in answer."""
        return peek(self.attendant.answer(replace(parcel, trail=trail)).envelope, 1 << 30)

    def says(self, parcel: Parcel, trail: bytes) -> str:
        """The kind of its answer, or the code of its refusal."""
        said = self.ask(parcel, trail)
        return str(said.body["code"]) if said.kind.startswith(REFUSAL) else said.kind

    @property
    def size(self) -> int:
        return open_witness(self.node).seen.size

    def known(self) -> list[int]:
        return [index for index, _ in Receipts(self.folder).members()]

    def stored(self) -> int:
        """Bytes in its folder, without its rows."""
        return sum(
            path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and path.name != "data.parquet"
        )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "north")


def cosigning(round: int = 0, **changed: Any) -> Parcel:
    return request("cosign", {"end": 0}, round=round, **changed)


def test_the_harness_is_an_honest_coordinator_unless_it_is_told_otherwise(home: Home) -> None:
    ledger = founded()
    assert home.says(rollcall(), ledger.trail(FOUNDING)) == "rollcall"
    assert home.known() == list(FOUNDING)
    ledger.pad(1)
    assert home.says(request("evidence"), ledger.trail(agreed=6)) == "evidence"
    assert home.size == 7


# release of what privacy was spent for, after a fork


def test_evidence_is_not_released_on_a_history_that_no_quorum_confirmed(home: Home) -> None:
    """The first release of a study is the second question: it needs the quorum's word on the roll call."""
    ledger = founded()
    assert home.says(rollcall(), ledger.trail(FOUNDING)) == "rollcall"
    assert home.says(request("evidence"), ledger.pad(1).trail()) == "stale"


def test_questions_asked_in_vain_before_a_fork_do_not_open_the_releases_behind_it(home: Home) -> None:
    """A slot that is asked for early, with a body that is refused and spends nothing, must not stay in the list of what
    was asked as it was then."""
    node_, ledger = home.node, founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    home.says(request("evidence"), ledger.trail(agreed=6))
    meta, tensors = training(node_)  # asks the node itself; no question to the attendant
    for number in (1, 2):
        for kind in ("update", "evaluation"):
            assert home.says(request(kind, {"bad": 1}, round=number), ledger.trail(agreed=6)) == "identity"
    fork = ledger.fork().pad(3, "nobody else sees this")
    honest = ledger.pad(9)  # what all others see
    assert honest.checkpoint(9).root != fork.checkpoint(9).root
    said = []
    for number in (1, 2):
        for kind in ("update", "evaluation"):
            asked = request(kind, {"model": meta}, round=number, tensors=tensors)
            said.append(home.says(asked, fork.pad(1).trail(agreed=6)))
    # Two of them may pass: it is seen two questions behind the fork.
    assert said[2:] == ["stale", "stale"], said


def revoked(ledger: Ledger, name: str, epoch: int, *voters: str) -> int:
    body = {"member": name, "reason": "colludes"}
    size = len(ledger.records)
    votes = [{"member": v, "envelope": ledger.vote(v, "member.revoke", body, epoch, size)} for v in voters]
    return ledger.add("member.revoke", {**body, "votes": votes})


def test_members_that_were_voted_out_confirm_no_history_in_a_study_that_they_began(home: Home) -> None:
    """Of those who began the study, only who is a member still, with the same key, may count to its quorum."""
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    home.says(request("evidence"), ledger.trail(agreed=6))
    meta, tensors = training(home.node)
    gone = [revoked(ledger, "south", 4, "north", "west", "east"), revoked(ledger, "west", 5, "north", "west", "east")]
    assert home.says(cosigning(), ledger.trail(gone, agreed=6)) == "cosign"
    fork = ledger.fork().pad(1, "nobody else sees this")
    said = []
    for number in (1, 2):
        for kind in ("update", "evaluation"):
            asked = request(kind, {"model": meta}, round=number, tensors=tensors)
            size = len(fork.pad(1).records) - 1
            said.append(home.says(asked, fork.trail(agreed=size, by=["north", "south", "west"])))
    assert said[2:] == ["stale", "stale"], said


# who the members are


SPOILT: dict[str, dict[str, Any]] = {
    "agreed on by too few": {"agreed": founded().note(6, ["north"])},
    "agreed is garbage": {"agreed": "garbage"},
    "agreed is of another ledger": {"agreed": founded(names=("north",)).note(None, ALL)},
    "agreed without its proof": {"agreed": founded().note(5, ALL), "agreed_proof": (b"0" * 32,)},
    "receipts of nothing": {"agreed": founded().note(6, ALL), "receipts": (Shown(0, b"garbage", ()),)},
}


@pytest.mark.parametrize("case", SPOILT)
def test_members_are_not_learned_from_a_checkpoint_that_was_not_cosigned(case: str, home: Home) -> None:
    """Shown a founding of its own and a spoilt rest, then the history that all others have: the second is cosigned, so
    nobody ever finds a fork, but the members known would be those of the first."""
    word_of(home)
    lie = founded(names=("north", "ghost-a", "ghost-b", "ghost-c"))
    home.says(rollcall(), replace(Trail.unpack(lie.trail(FOUNDING)), **SPOILT[case]).pack())
    assert (home.known(), home.size) in (([], 0), (list(FOUNDING), 6))


def test_members_are_not_learned_where_the_cosignature_fails(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("The disk is full.")

    monkeypatch.setattr(Witness, "cosign", fail)
    assert home.says(rollcall(), founded().trail(FOUNDING)) == "ledger"
    assert home.known() == []


def test_changes_behind_the_first_proposal_need_votes_at_the_first_look_too(home: Home) -> None:
    """One ledger for all, no fork. The others are not shown the entries of ghosts; a newcomer is not shown that the
    founding was over."""
    ledger = founded(names=("north",))
    for number in range(1, 5):
        ledger.add("member.admit", admission(f"ghost-{number}", number))
    assert home.says(rollcall(), ledger.trail((0, 1, 3, 4, 5, 6))) == "ledger"
    assert home.size == 0


def test_entries_out_of_their_order_are_refused(home: Home) -> None:
    """The end of the founding, shown last, makes a founding of what came behind it."""
    ledger = founded(names=("north",))
    for number in range(1, 5):
        ledger.add("member.admit", admission(f"ghost-{number}", number))
    assert home.says(rollcall(), ledger.trail((0, 1, 3, 4, 5, 6, 2))) != "rollcall"
    assert home.size == 0


def test_entries_that_say_nothing_of_the_members_are_not_kept(home: Home) -> None:
    """Each request could leave megabytes on the member's disk, read again at every one that follows."""
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    before = home.stored()
    first = len(ledger.records)
    for number in range(4):
        ledger.add("pool", {"study": "x", "bulk": str(number) * 500_000})
    home.says(cosigning(), ledger.trail(range(first, first + 4)))
    assert home.stored() < before + 500_000
    assert home.known() == list(FOUNDING)


def test_further_proposals_are_not_kept(home: Home) -> None:
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    first, before = len(ledger.records), home.stored()
    for number in range(4):
        ledger.add("study.proposed", {"study": "x", "bulk": str(number) * 500_000})
    home.says(cosigning(), ledger.trail(range(first, first + 4)))
    assert home.stored() < before + 500_000


def test_a_vote_on_a_root_that_is_not_proven_does_not_count(home: Home) -> None:
    """A root that the trail does not prove must not equal the one that a vote leaves empty."""
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    body = admission("ghost", 4)
    votes = [
        {"member": name, "envelope": ledger.vote(name, "member.admit", body, 4, 5, root="")}
        for name in ("south", "west", "east")
    ]
    index = ledger.add("member.admit", {**body, "votes": votes})
    proofs = {6: ledger.proof(6)}
    assert home.says(cosigning(), ledger.trail([index], proofs=proofs)) == "identity"
    assert home.known() == list(FOUNDING)


# receipts


def word_of(home: Home, study: str = STUDY.hash, envelope: str = "the word") -> Word:
    word = Word(sha256(envelope.encode()), study, "evidence", 0, 1)
    Receipts(home.folder).given(word)
    return word


POLICY = write_policy(
    ORIGIN, COORD.public, {name: KEYS[name].public for name in NAMES}, {name: WATCH[name].public for name in NAMES}, 3
)
BODY = {"study": STUDY.hash, "member": "north", "round": 0, "envelope": "the word"}


def _record(kind: str, body: Mapping[str, Any], index: int) -> bytes:
    return canonical(
        {
            "body": dict(body), "index": index, "kind": kind, "payloads": [], "previous": "0" * 64,
            "time": "2026-01-01T00:00:00.000Z",
        }
    )  # fmt: skip


WORTHLESS = {
    "no record at all": json.dumps({"kind": "evidence", "body": BODY}).encode(),
    "of another index": _record("evidence", BODY, 3),
    "not canonical": json.dumps(json.loads(_record("evidence", BODY, 6))).encode(),
    "of an unknown kind": _record("nothing", BODY, 6),
    "with payloads that are none": canonical({**json.loads(_record("evidence", BODY, 6)), "payloads": {}}),
    "at no time": canonical({**json.loads(_record("evidence", BODY, 6)), "time": "now"}),
    "behind no link": canonical({**json.loads(_record("evidence", BODY, 6)), "previous": "0"}),
    "too deep": _record("evidence", {**BODY, "deep": json.loads("[" * 60 + "]" * 60)}, 6),
}


@pytest.mark.parametrize("case", WORTHLESS)
def test_a_receipt_that_convinces_nobody_is_none(case: str, home: Home) -> None:
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    word = word_of(home)
    index = ledger.add_record(WORTHLESS[case])
    home.says(cosigning(), ledger.trail(agreed=7, receipts=[index]))
    with pytest.raises(LedgerError):
        verify_receipt(_text_of(ledger, index), ledger.records[index], Policy.parse(POLICY))
    (kept,) = [one for one in Receipts(home.folder).words() if one.envelope == word.envelope]
    assert kept.entry is None, "no complaint will ever be made of this word"


def _text_of(ledger: Ledger, index: int) -> str:
    shown = ledger.shown(index)
    return proof_text(index, list(shown.proof), ledger.note(None, ALL))


def test_a_true_receipt_is_kept_and_convinces(home: Home) -> None:
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    word = word_of(home)
    index = ledger.add_record(_record("evidence", BODY, 6))
    home.says(cosigning(), ledger.trail(agreed=7, receipts=[index]))
    (kept,) = Receipts(home.folder).words()
    assert kept.entry == 6
    text = (home.folder / "receipts" / f"{word.name}.tlog-proof").read_text()
    assert verify_receipt(text, ledger.records[6], Policy.parse(POLICY)).index == 6


ELSEWHERE = {
    "another kind": ("pool", BODY),
    "another study": ("evidence", {**BODY, "study": "f" * 64}),
    "another round": ("evidence", {**BODY, "round": 7}),
    "another's name": ("evidence", {**BODY, "member": "south"}),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_word_that_stands_where_no_auditor_looks_has_no_receipt(case: str, home: Home) -> None:
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    word_of(home)
    index = ledger.add(*ELSEWHERE[case])
    home.says(cosigning(), ledger.trail(agreed=7, receipts=[index]))
    (kept,) = Receipts(home.folder).words()
    assert kept.entry is None


def test_receipts_of_two_studies_do_not_overwrite_each_other(home: Home) -> None:
    """Two hashes with the same 12 digits take 2^24 tries to find."""
    receipts = Receipts(home.folder)
    for ending in ("a", "b"):
        word = word_of(home, STUDY.hash[:12] + ending * 52, ending)
        receipts.keep(word, 1, f"receipt {ending}", b"record")
    kept = sorted(path.read_text().strip() for path in (home.folder / "receipts").glob("*.tlog-proof"))
    assert kept == ["receipt a", "receipt b"]


# what nobody expected: a refusal is signed, and nothing else happens


def _voted(envelope: str) -> dict[str, Any]:
    return {**admission("ghost", 4), "votes": [{"member": "south", "envelope": envelope}]}


def _garbled(parent: str) -> str:
    ledger = founded()
    return ledger.vote("south", "member.admit", admission("ghost", 4), 4, 6, root=parent)


GARBAGE: dict[str, bytes] = {
    "a vote's root that is no hexadecimal": _record("member.admit", _voted(_garbled("zz")), 6),
    "a vote's envelope with half a surrogate pair": (
        b'{"kind":"member.admit","body":%s}'
        % json.dumps({**admission("ghost", 4), "votes": [{"member": "south", "envelope": "\ud800"}]}).encode()
    ),
    "a key with half a surrogate pair": (
        b'{"kind":"member.admit","body":%s}'
        % json.dumps({**admission("ghost", 4), "key": "\ud800+00000000+AQ=="}).encode()
    ),
    "a witness with half a surrogate pair": (
        b'{"kind":"member.admit","body":%s}'
        % json.dumps({**admission("ghost", 4), "witness": "\ud800+0+BA=="}).encode()
    ),
    "votes of many kinds": _record(
        "member.admit", {**admission("ghost", 4), "votes": [1, None, {}, {"envelope": 1}]}, 6
    ),
    "a body that is a list": b'{"kind":"member.admit","body":[]}',
    "a list": b"[]",
    "deep": b'{"kind":"member.admit","body":' + b'{"a":' * 30_000 + b"1" + b"}" * 30_000 + b"}",
    "a number of many digits": b'{"kind":"federation.faulty","body":{"faulty":' + b"9" * 5000 + b"}}",
    "a large number": b'{"kind":"federation.faulty","body":{"faulty":' + b"9" * 100 + b"}}",
    "not a number": b'{"kind":"federation.faulty","body":{"faulty":NaN}}',
    "an epoch of many digits": b'{"kind":"member.admit","body":%s}'
    % json.dumps({**admission("ghost", 4), "epoch": 10**100}).encode(),
    "an edge of lists": _record("federation.edit", {"study": "x", "edge": [[], []], "change": "add", "reason": "r"}, 6),
    "a change of no kind": b'{"kind":"federation.edit","body":{"study":"x","edge":["a","b"],'
    b'"change":"\\ud800","reason":""}}',
    "nothing": b"",
    "zeros": b"\0\0\0{",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_an_entry_of_garbage_is_refused_with_a_signature(case: str, home: Home) -> None:
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    index = ledger.add_record(GARBAGE[case])
    assert home.says(cosigning(), ledger.trail([index])) in {"identity", "ledger", "configuration", "guarantee"}
    assert home.known() == list(FOUNDING)
    assert home.size == 6


def _changed(change: Mapping[str, Any]) -> bytes:
    return json.dumps(
        {**json.loads(founded().trail(FOUNDING)), **change}, sort_keys=True, separators=(",", ":")
    ).encode()


TRAILS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000,
    "a list": b"[]",
    "checkpoint 1": _changed({"checkpoint": 1}),
    "checkpoint null": _changed({"checkpoint": None}),
    "proofs a list": _changed({"proofs": []}),
    "proofs of words": _changed({"proofs": {"x": []}}),
    "proofs of many digits": _changed({"proofs": {"9" * 5000: []}}),
    "proofs of a large size": _changed({"proofs": {"9" * 30: []}, "checkpoint": founded().note()}),
    "proofs of numbers": _changed({"proofs": {"1": [1]}}),
    "a proof of short hashes": _changed({"proofs": {"1": ["AA=="]}}),
    "agreed a number": _changed({"agreed": 1}),
    "agreed garbage": _changed({"agreed": "x"}),
    "last a list": _changed({"last": []}),
    "last short": _changed({"last": {"north": [1]}}),
    "last of garbage": _changed({"last": {"north": [1, "zz", "x"]}}),
    "last of a large size": _changed({"last": {"north": [2**53, "00" * 32, "x"]}}),
    "members an object": _changed({"members": {}}),
    "members of numbers": _changed({"members": [1]}),
    "an index of words": _changed({"members": [{"index": "1", "record": "", "proof": []}]}),
    "an index below 0": _changed({"members": [{"index": -1, "record": "", "proof": []}]}),
    "a large index": _changed({"members": [{"index": 2**53, "record": "{}", "proof": []}]}),
    "receipts of garbage": _changed({"agreed": "", "receipts": [{"index": 0, "record": "x", "proof": []}]}),
    "half a surrogate pair": _changed({}).replace(b'"agreed":""', b'"agreed":"\\ud800"'),
    "half a surrogate pair in the checkpoint": b'{"checkpoint":"\\ud800"' + _changed({})[len(b'{"agreed":""') :],
    "half a surrogate pair in last": _changed({"last": {"north": [1, "00" * 32, "X"]}}).replace(b'"X"', b'"\\ud800"'),
    "half a surrogate pair in a root": _changed({"last": {"north": [1, "X", ""]}}).replace(b'"X"', b'"\\ud800"'),
    "too long": b" " * (8 << 20) + b"{}",
    "many proofs": _changed({"proofs": {str(size): [] for size in range(1, 100_000)}}),
}


UNREAD = {
    "many proofs", "proofs of a large size", "a proof of short hashes", "receipts of garbage",
    "half a surrogate pair in a root",
}  # fmt: skip
"""Garbage that nobody asked for: the first checkpoint needs no proof, and nothing was said that needs a receipt."""


@pytest.mark.parametrize("case", TRAILS)
def test_a_trail_of_garbage_is_answered_with_a_signature(case: str, home: Home) -> None:
    said = home.says(rollcall(), TRAILS[case])
    assert said in {"identity", "ledger", "configuration", "stale", "rollcall"}
    assert said != "rollcall" or case in UNREAD


# its disk


def test_questions_that_nobody_approved_leave_nothing_on_the_disk(home: Home) -> None:
    """A study's name, as a coordinator writes it, may be as long as a request."""
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    before = home.stored()
    for number in range(3):
        with suppress(CausalDAOError):
            home.says(request("evidence", study=str(number) * 300_000), ledger.trail(agreed=6))
        home.says(request("evidence", study=str(number) * 64), ledger.trail(agreed=6))
    assert home.stored() < before + 500_000


def test_a_kind_of_megabytes_leaves_nothing_on_the_disk(home: Home) -> None:
    ledger = founded()
    home.says(rollcall(), ledger.trail(FOUNDING))
    before = home.stored()
    for kind in ("k" * (2 << 20), *(f"kind-{number}" for number in range(20))):
        with suppress(CausalDAOError):
            home.says(request(kind), ledger.trail(agreed=6))
    assert home.stored() < before + 500_000


# rotation


def test_a_member_with_a_new_witness_key_is_not_shut_out_by_what_its_old_one_cosigned(tmp_path: Path) -> None:
    """The coordinator shows what it holds under the name; a line of another key is not this witness's own."""
    ledger = founded()
    home = Home(tmp_path / "north")
    old = SigningKey.from_seed(b"O" * 32)
    line = cosign(ledger.checkpoint(), "north", old, 1)
    last = {"north": Own(6, ledger.checkpoint().root.hex(), line)}
    assert home.says(rollcall(), ledger.trail(FOUNDING, last=last)) == "rollcall"


# what it can make an auditor believe


def test_a_study_that_is_conducted_without_a_proposal_ends_the_founding(home: Home) -> None:
    """Else an operator that never proposes a study admits and revokes alone for ever, while its members speak."""
    forge = Forge().genesis(faulty=1).admit(*MEMBERS)
    forge.add("study.draft", {"study": FORGED})
    forge.add("evidence", {**word("ada", kind="evidence"), "study": FORGED})
    forge.admit("dan")
    policy = Policy.parse(policy_text((*MEMBERS, "dan"), (), 0))
    with pytest.raises(LedgerError):
        verify(forge.bundle(), policy)
