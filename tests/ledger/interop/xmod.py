"""Go's golang.org/x/mod/sumdb/{note,tlog}, an implementation that shares nothing with ours: how to ask it.

`ask` builds and runs ``main.go`` beside this file; it needs Go and x/mod's source, and no network. What it said to the
questions of `questions` is kept in ``tests/ledger/vectors/xmod.json``, so that the quick tests need no Go. To record it
anew: ``python -m tests.ledger.interop.xmod``.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from causaldao.errors import LedgerError
from causaldao.ledger import merkle
from causaldao.ledger.note import (
    COSIGNER,
    LOG,
    Checkpoint,
    Verifier,
    cosign,
    cosigners,
    open_note,
    sign_checkpoint,
    with_cosignatures,
)
from causaldao.signing import SigningKey

RECORDED = Path(__file__).parents[1] / "vectors" / "xmod.json"
XMOD = Path("src/golang.org/x/mod/sumdb/tlog/tlog.go")
DEBIAN = "/usr/share/gocode"  # where Debian's Go packages put sources
WHAT_IS_NEEDED = (
    "The proof against Go's x/mod needs the command `go` and the source of golang.org/x/mod under $GOPATH/src: "
    "on Debian and Ubuntu, apt-get install golang-go golang-golang-x-mod-dev."
)

ORIGIN = "causaldao.example/north"
LOG_KEY = SigningKey.from_seed(b"L" * 32)
WITNESSES = {name: SigningKey.from_seed(name.encode().ljust(32, b"w")) for name in ("ada", "bob", "zoë.example/w1")}
LEAVES = [f"leaf {number}".encode() for number in range(100)]
TIME = 1_700_000_000

LOG_VERIFIER = Verifier.of(ORIGIN, LOG_KEY.public, LOG)
WITNESS_VERIFIERS = [Verifier.of(name, key.public, COSIGNER) for name, key in WITNESSES.items()]
VKEYS = [LOG_VERIFIER.text, *(verifier.text for verifier in WITNESS_VERIFIERS)]

# Where the two may differ on a note, and why. Everything else must be opened by both or by neither.
STRICTER = {
    "size with a leading zero": "x/mod's notes are any text, ours are checkpoints",
    "no checkpoint": "x/mod's notes are any text, ours are checkpoints",
    "the log's line twice": "x/mod drops the double: then one content has many texts",
    "a witness's line twice": "the same",
    "trailing bits in base64": "x/mod decodes what is not canonical: the same",
    "only a witness signed": "x/mod asks for one known key, a checkpoint for the log's",
}
LOOSER = {"101 signatures of unknown keys": "x/mod reads 100 lines, we read 256: C2SP leaves the bound to the reader"}


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """What Go answers.

    Raises
    ------
    RuntimeError
        Go or x/mod's source is not on this machine, or the program fails.
    """
    done = subprocess.run([_program()], input=json.dumps(question), capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"The Go program failed: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@cache
def _program() -> Path:
    places = [*os.environ.get("GOPATH", "").split(os.pathsep), DEBIAN]
    place = next((place for place in places if place and (Path(place) / XMOD).is_file()), None)
    if place is None or shutil.which("go") is None:
        raise RuntimeError(WHAT_IS_NEEDED)
    built = Path(tempfile.mkdtemp(prefix="causaldao-xmod-"))
    atexit.register(shutil.rmtree, built, ignore_errors=True)
    where = {"GO111MODULE": "off", "GOFLAGS": "", "GOPATH": place, "GOCACHE": str(built / "cache")}
    done = subprocess.run(
        ["go", "build", "-o", str(built / "xmod"), "main.go"],
        cwd=Path(__file__).parent, env={**os.environ, **where}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"main.go does not build with {place}: {done.stderr}")
    return built / "xmod"


def opening(note: str | bytes, vkeys: Sequence[str] = tuple(VKEYS)) -> dict[str, Any]:
    """A question for Go: does this note open?"""
    data = note.encode() if isinstance(note, str) else note
    return {"note": base64.b64encode(data).decode(), "vkeys": list(vkeys)}


def opened(note: bytes, vkeys: Sequence[str]) -> tuple[str, set[str]] | None:
    """Our answer to `opening`: the text and who signed it, or None where the note is refused."""
    verifiers = [Verifier.parse(vkey) for vkey in vkeys]
    logs = [verifier for verifier in verifiers if verifier.kind == LOG]
    try:
        text = note.decode()
        read = [open_note(text, log) for log in logs]
        signed = cosigners(text, [verifier for verifier in verifiers if verifier.kind == COSIGNER])
    except (LedgerError, UnicodeDecodeError):
        return None
    return (read[0].text, {logs[0].name, *signed}) if read else None


def checkpoint(size: int = 7, extensions: tuple[str, ...] = ()) -> Checkpoint:
    """The checkpoint of the first leaves."""
    return Checkpoint(ORIGIN, size, merkle.root([merkle.leaf_hash(leaf) for leaf in LEAVES[:size]]), extensions)


def cosigned(head: Checkpoint, names: Iterable[str] = tuple(WITNESSES)) -> str:
    lines = [cosign(head, name, WITNESSES[name], TIME + len(name)) for name in names]
    return with_cosignatures(sign_checkpoint(head, LOG_KEY), lines)


def signed_text(text: str, kind: int = LOG, name: str = ORIGIN, key: SigningKey = LOG_KEY) -> str:
    """A note of any text, signed by hand."""
    found = base64.b64encode(Verifier.of(name, key.public, kind).id + key.sign(text.encode())).decode()
    return f"{text}\n— {name} {found}\n"


def notes() -> dict[str, str]:
    """Good notes and bad ones, by what is the matter with them."""
    head = checkpoint()
    good = cosigned(head)
    text, _, block = good.partition("\n\n")
    log_line, *witness_lines = block[:-1].split("\n")
    without = text + "\n\n"
    flipped = "A" if log_line[-30] != "A" else "B"
    late, never = (_at(head, time) for time in (2**63, 0))
    elsewhere = cosign(checkpoint(6), "ada", WITNESSES["ada"], 1)
    return {
        "one signature": sign_checkpoint(head, LOG_KEY),
        "all signatures": good,
        "an empty tree": cosigned(checkpoint(0)),
        "the largest tree": cosigned(Checkpoint(ORIGIN, 2**63 - 1, b"\xff" * 32)),
        "extension lines": cosigned(checkpoint(7, ("one", "and — two + ü"))),
        "the log's line last": without + "\n".join([*witness_lines, log_line, ""]),
        "lines of unknown keys": good + "— someone.else AAAAAAA=\n" + f"— {ORIGIN} AAAAAAA=\n",
        "unknown lines twice": good + "— someone.else AAAAAAA=\n" * 2,
        "100 signatures": good + "".join(f"— w{number} AAAAAAA=\n" for number in range(96)),
        "101 signatures of unknown keys": good + "".join(f"— w{number} AAAAAAA=\n" for number in range(97)),
        "257 signatures": good + "".join(f"— w{number} AAAAAAA=\n" for number in range(253)),
        "size with a leading zero": signed_text(head.text.replace("\n7\n", "\n07\n")),
        "no checkpoint": signed_text("a text\n\nwith an empty line\n"),
        "the log's line twice": without + f"{log_line}\n" * 2,
        "a witness's line twice": good + witness_lines[0] + "\n",
        "trailing bits in base64": without + f"{log_line[:-2]}{_next(log_line[-2])}=\n",
        "only a witness signed": without + witness_lines[0] + "\n",
        "a signature altered": good.replace(log_line, log_line[:-30] + flipped + log_line[-29:]),
        "a cosignature altered": good.replace(witness_lines[1], _altered(witness_lines[1])),
        "the size altered": good.replace("\n7\n", "\n8\n"),
        "the origin altered": good.replace(f"{ORIGIN}\n", "causaldao.example/south\n"),
        "an extension added": good.replace("\n\n", "\nmore\n\n"),
        "a cosignature of another size": good.replace(witness_lines[0], elsewhere),
        "a cosignature by another key": without + f"{log_line}\n" + _by_another(head),
        "a cosignature without a time": without + f"{log_line}\n" + _timeless(head),
        "a cosignature at time 0": without + f"{log_line}\n{never}\n",
        "a cosignature at time 2^63": without + f"{log_line}\n{late}\n",
        "no final newline": good[:-1],
        "no empty line": good.replace("\n\n", "\n"),
        "no signature": text + "\n",
        "no signature line": without,
        "an empty line between signatures": without + f"{log_line}\n\n{witness_lines[0]}\n",
        "a text behind the signatures": good + "and more\n",
        "a carriage return": good.replace("\n", "\r\n"),
        "a tab": good.replace(f"{ORIGIN} ", f"{ORIGIN}\t"),
        "a control character": signed_text(head.text + "extension\x01\n"),
        "a hyphen for the dash": without + log_line.replace("—", "-") + "\n",
        "two spaces": without + log_line.replace(f"{ORIGIN} ", f"{ORIGIN}  ") + "\n",
        "a space at the end": without + log_line + " \n",
        "a name with a plus": good + "— a+b AAAAAAA=\n",
        "a name with a no-break space": good + "— a\u00a0b AAAAAAA=\n",
        "an empty name": good + "—  AAAAAAA=\n",
        "a signature without bytes": good + "— someone AAAAAA==\n",
        "no padding": without + log_line.rstrip("=") + "\n",
        "the other alphabet of base64": good + "— someone AAAAA-A=\n",
        "nothing": "",
        "a newline": "\n",
        "two newlines": "\n\n",
    }  # fmt: skip


def _next(character: str) -> str:
    """The next digit of base64: another spelling of the same bytes where only trailing bits differ."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return digits[digits.index(character) + 1]


def _altered(line: str) -> str:
    return line[:-20] + ("A" if line[-20] != "A" else "B") + line[-19:]


def _at(head: Checkpoint, time: int) -> str:
    """A cosignature of ``ada`` at a time that `cosign` refuses."""
    key = WITNESSES["ada"]
    signature = key.sign(f"cosignature/v1\ntime {time}\n{head.text}".encode())
    data = Verifier.of("ada", key.public, COSIGNER).id + time.to_bytes(8, "big") + signature
    return f"— ada {base64.b64encode(data).decode()}"


def _by_another(head: Checkpoint) -> str:
    """``bob``'s cosignature under the name and id of ``ada``."""
    data = base64.b64decode(cosign(head, "bob", WITNESSES["bob"], TIME).split(" ")[2])
    own = Verifier.of("ada", WITNESSES["ada"].public, COSIGNER).id
    return f"— ada {base64.b64encode(own + data[4:]).decode()}\n"


def _timeless(head: Checkpoint) -> str:
    """A plain signature where a cosignature is due."""
    return signed_text(head.text, COSIGNER, "ada", WITNESSES["ada"]).partition("\n\n")[2]


def questions() -> dict[str, Any]:
    """What is asked and recorded."""
    heads = [
        checkpoint(),
        checkpoint(0),
        checkpoint(64, ("an extension",)),
        Checkpoint(ORIGIN, 2**63 - 1, b"\xff" * 32),
    ]
    return {
        "open": [opening(note) for note in notes().values()],
        "sign": [
            {
                "text": head.text,
                "log": {"name": ORIGIN, "seed": base64.b64encode(b"L" * 32).decode()},
                "by": [
                    {"name": name, "seed": base64.b64encode(name.encode().ljust(32, b"w")).decode(), "time": time}
                    for name, time in zip(WITNESSES, (1, TIME, 2**63 - 1), strict=True)
                ],
            }
            for head in heads
        ],
        "trees": [[base64.b64encode(leaf).decode() for leaf in LEAVES]],
    }


def proofs_digest(proofs: Iterable[Sequence[bytes]]) -> str:
    """One SHA-256 over many proofs: the number of hashes of each in a byte, and the hashes."""
    whole = hashlib.sha256()
    for proof in proofs:
        whole.update(bytes([len(proof)]) + b"".join(proof))
    return whole.hexdigest()


def record() -> dict[str, Any]:
    """What is kept of Go's answers: the notes, the roots, the proofs of sizes to 8 and digests of the others."""
    answer = ask(questions())
    tree = answer["trees"][0]
    decoded = {
        kind: [[[base64.b64decode(value) for value in proof or []] for proof in size] for size in tree[kind]]
        for kind in ("inclusion", "consistency")
    }
    return {
        "source": "golang.org/x/mod/sumdb/note and tlog, through tests/ledger/interop/main.go",
        "open": dict(zip(notes(), answer["open"], strict=True)),
        "sign": answer["sign"],
        "roots": tree["roots"],
        **{kind: [[proof or [] for proof in size] for size in tree[kind][:8]] for kind in decoded},
        **{f"{kind} digests": list(map(proofs_digest, sizes)) for kind, sizes in decoded.items()},
    }


def main() -> None:
    RECORDED.write_text(json.dumps(record(), indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
