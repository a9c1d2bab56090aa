"""The ledger: what a durable append costs, how long an auditor needs for a large ledger, how large a receipt is.

The peer of the appends is a bare SQLite table with the same settings on the same disk, into which the bytes that the
ledger has just recorded (record, link, signature) are inserted again, in commits of the same size; each commit of ours
is followed by one of the peer's, and the ratio is the median over these pairs. What the machine itself gives, hashes
and signatures a second on one core, is measured in the same run.

The large ledger is not appended but written as a bundle, with the functions that make entries; it is then verified in
a process of its own, as an auditor would: every byte, the chain, the tree and every signature. Its last checkpoint is
cosigned by `COSIGNERS` members, and the receipt is of its middle entry.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from causaldao.ledger.bundle import FORMAT, write_policy
from causaldao.ledger.entry import Entry, entry_text, first_link, next_link, record_bytes
from causaldao.ledger.log import Log
from causaldao.ledger.merkle import inclusion_proof, leaf_hash, root
from causaldao.ledger.note import COSIGNER, Checkpoint, Verifier, cosign, proof_text, sign_checkpoint, with_cosignatures
from causaldao.ledger.verify import Policy, verify_receipt
from causaldao.signing import SigningKey, VerifyKey, canonical
from causaldao.simulations.benchmarks.memory import most_held

COSIGNERS = 20
COMMITS = {1: 60, 32: 15, 256: 4}  # entries a commit: pairs of commits in one repeat
PROCESSES = 2
_ORIGIN = "causaldao.example/benchmark"
_TIME = "2025-01-31T12:00:00.000Z"
_SAMPLES = 2000  # hashes, or signatures, in one repeat
_RECEIPTS = 20  # verifications in one repeat
_WATCH = 0.1  # seconds
_IN_MEMORY = ("tmpfs", "ramfs")
# A program of its own, so that its memory is that of a verifier and of nothing else.
_AUDITOR = """
import json, sys, time
from pathlib import Path
from causaldao.ledger.verify import Policy, verify

began, seen, told = time.perf_counter(), [], 0.0
def progress(done, total):
    global told
    seen.append(time.perf_counter())
    if seen[-1] - told > 2 or done == total:
        told = seen[-1]
        sys.stderr.write(f"  verified {done} of {total} signatures\\n")

bundle, policy = Path(sys.argv[1]).read_bytes(), Policy.parse(Path(sys.argv[2]).read_text(encoding="utf-8"))
report = verify(bundle, policy, len(bundle), progress=progress, processes=int(sys.argv[3]))
ended = time.perf_counter()
found = {"size": report.size, "cosigners": len(report.cosigners), "seconds": ended - began}
found["signatures_seconds"] = seen[-1] - seen[0]
found["bytes_chain_tree_seconds"] = found["seconds"] - found["signatures_seconds"]
print(json.dumps(found))
"""


def measure(*, entries: int = 1_000_000, repeats: int = 5) -> dict[str, Any]:
    """Appends of each commit size, the machine's own rates, and a ledger of so many entries, verified once."""
    with tempfile.TemporaryDirectory(dir=_disk()) as folder:
        place = Path(folder)
        machine = _machine(repeats)
        appends = {str(size): _appends(place / f"{size}.db", size, pairs * repeats) for size, pairs in COMMITS.items()}
        ledger = _Ledger.make(place, entries)
        return {
            "entries": entries,
            "repeats": repeats,
            "cores": os.cpu_count(),
            "file_system": file_system(place),
            "machine": machine,
            "appends": appends,
            "verify": _verified(ledger, machine),
            "receipt": _receipt(ledger, repeats),
        }


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``, such as ext4; "unknown" where the kernel does not list them."""
    held, found = path.resolve(), ("", "unknown")
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, mount, kind, *_ = line.split()
            if held.is_relative_to(mount) and len(mount) >= len(found[0]):
                found = (mount, kind)
    return found[1]


def _disk() -> Path:
    """A folder for the databases: one whose file system is not in memory, if there is one."""
    places = [Path(tempfile.gettempdir()), Path.cwd()]
    return next((place for place in places if file_system(place) not in _IN_MEMORY), places[0])


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


def _rate(action: Callable[[], object], number: int, repeats: int) -> float:
    """Median of how many of ``number`` things a second ``action`` does, which does them all."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return number / median(seconds)


def _entry(number: int) -> Entry:
    return Entry("pool", {"number": number, "study": "benchmark", "text": "an entry of a common size " * 4})


def _machine(repeats: int) -> dict[str, float]:
    """Leaf hashes, signatures and verifications a second, on one core."""
    key = SigningKey.generate()
    records = [record_bytes(_entry(number), number, first_link(_ORIGIN), _TIME) for number in range(_SAMPLES)]
    texts = [entry_text(_ORIGIN, number, first_link(_ORIGIN)) for number in range(_SAMPLES)]
    signatures = [key.sign(text) for text in texts]
    public = Ed25519PublicKey.from_public_bytes(key.public.raw)
    return {
        "leaves_per_second": _rate(lambda: [leaf_hash(record) for record in records], _SAMPLES, repeats),
        "signs_per_second": _rate(lambda: [key.sign(text) for text in texts], _SAMPLES, repeats),
        "verifies_per_second": _rate(
            lambda: [public.verify(signature, text) for signature, text in zip(signatures, texts, strict=True)],
            _SAMPLES,
            repeats,
        ),
    }


# Appends


def _appends(path: Path, size: int, pairs: int) -> dict[str, float]:
    """Entries a second, ours and the peer's, and the median of the pairs' ratios of seconds."""
    _say(f"appends: {pairs} commits of {size}")
    ours, bare = list[float](), list[float]()
    with Log.create(f"sqlite:///{path}", _ORIGIN, SigningKey.generate()) as log, closing(_peer(path)) as peer:
        log.append([Entry("genesis", {"federation": "benchmark", "faulty": 0})])
        for commit in range(pairs + 1):
            entries = [_entry(commit * size + number) for number in range(size)]
            began = time.perf_counter()
            indices = log.append(entries)
            ours.append(time.perf_counter() - began)
            recorded = log.entries(indices[0])
            rows = [(entry.index, entry.record, entry.link, entry.signature) for entry in recorded]
            began = time.perf_counter()
            peer.execute("BEGIN IMMEDIATE")
            peer.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
            peer.execute("COMMIT")
            bare.append(time.perf_counter() - began)
    del ours[0], bare[0]  # each made its statements and its files
    return {
        "pairs": pairs,
        "entries_per_second": size / median(ours),
        "bare_sqlite_per_second": size / median(bare),
        "ratio": median(one / other for one, other in zip(ours, bare, strict=True)),
    }


def _peer(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path.with_suffix(".peer"), isolation_level=None)
    for setting in ("journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("CREATE TABLE entries (position INTEGER PRIMARY KEY, record BLOB, link TEXT, signature TEXT)")
    return connection


# A large ledger


@dataclass(frozen=True)
class _Ledger:
    """A bundle and its policy in files, and of its middle entry what a receipt needs."""

    bundle: Path
    policy: Path
    note: str
    middle: int
    record: bytes
    proof: list[bytes]
    seconds: float

    @staticmethod
    def make(folder: Path, size: int) -> _Ledger:
        """A genesis, the admission of each cosigner and then entries of a common size; the checkpoint cosigned."""
        began, key = time.perf_counter(), SigningKey.generate()
        members = {f"member-{number}": SigningKey.generate() for number in range(COSIGNERS)}
        witnesses = {name: SigningKey.generate() for name in members}
        first = [Entry("genesis", {"federation": "benchmark", "faulty": 0})]
        first += [_admission(epoch, name, members[name], witnesses[name].public) for epoch, name in enumerate(members)]
        link, leaves, middle, kept = first_link(_ORIGIN), list[bytes](), size // 2, b""
        bundle, policy = folder / "bundle", folder / "policy"
        with bundle.open("wb") as file:
            header = {"entries": size, "format": FORMAT, "origin": _ORIGIN, "payloads": 0}
            file.write(canonical(header) + b"\n")
            for index in range(size):
                record = record_bytes(first[index] if index < len(first) else _entry(index), index, link, _TIME)
                link = next_link(index, link, record)
                signature = base64.b64encode(key.sign(entry_text(_ORIGIN, index, link)))
                file.write(b'{"record":%b,"signature":"%b"}\n' % (record, signature))
                leaves.append(leaf_hash(record))
                kept = record if index == middle else kept
                if (index + 1) % 100_000 == 0:
                    _say(f"ledger: made {index + 1} of {size} entries")
            checkpoint = Checkpoint(_ORIGIN, size, root(leaves))
            lines = [cosign(checkpoint, name, witness, 1_738_324_800) for name, witness in witnesses.items()]
            note = with_cosignatures(sign_checkpoint(checkpoint, key), lines)
            file.write(note.encode())
        public = {name: member.public for name, member in members.items()}
        trusted = {name: witness.public for name, witness in witnesses.items()}
        policy.write_text(write_policy(_ORIGIN, key, public, trusted, COSIGNERS), encoding="utf-8")
        seconds = time.perf_counter() - began
        return _Ledger(bundle, policy, note, middle, kept, inclusion_proof(leaves, middle), seconds)


def _admission(epoch: int, name: str, member: SigningKey, witness: VerifyKey) -> Entry:
    body = {"member": name, "key": member.public.to_text(name), "witness": "", "epoch": epoch}
    return Entry("member.admit", {**body, "witness": Verifier.of(name, witness, COSIGNER).text})


def _verified(ledger: _Ledger, machine: dict[str, float]) -> dict[str, Any]:
    """Seconds of a verification, in all and of its parts, and the memory that its processes held at most."""
    from causaldao.simulations.benchmarks.scale import descendants

    _say(f"verify: {ledger.bundle.stat().st_size >> 20} MiB, with {PROCESSES} processes")
    command = [sys.executable, "-c", _AUDITOR, str(ledger.bundle), str(ledger.policy), str(PROCESSES)]
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            time.sleep(_WATCH)
            peaks |= {pid: held for pid in descendants(process.pid) if (held := most_held(pid))}
        said, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    found: dict[str, Any] = json.loads(said)
    alone = found["size"] / machine["verifies_per_second"] / PROCESSES
    return {
        "made_seconds": ledger.seconds,
        "mib": ledger.bundle.stat().st_size / 2**20,
        "processes": PROCESSES,
        **found,
        "signatures_ratio": found["signatures_seconds"] / alone,
        "peak_mib": peaks.get(process.pid, 0) / 2**20,
        "peak_mib_all_processes": sum(peaks.values()) / 2**20,
    }


def _receipt(ledger: _Ledger, repeats: int) -> dict[str, Any]:
    """Bytes of a receipt, and milliseconds of its verification offline."""
    receipt, policy = proof_text(ledger.middle, ledger.proof, ledger.note), Policy.parse(ledger.policy.read_text())
    rate = _rate(lambda: [verify_receipt(receipt, ledger.record, policy) for _ in range(_RECEIPTS)], _RECEIPTS, repeats)
    return {
        "cosigners": COSIGNERS,
        "bytes": len(receipt.encode()),
        "record_bytes": len(ledger.record),
        "verify_ms": 1000 / rate,
    }
