"""The ledger's commands: verify, show, export, receipt, check-receipt, watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from causaldao.console import Output
    from causaldao.ledger.monitor import Monitor
    from causaldao.ledger.note import Verifier
    from causaldao.ledger.reader import Reader
    from causaldao.ledger.verify import Line, Policy, Report

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", help="Verify, read, export and watch a ledger.", no_args_is_help=True
)

SCHEME = "ledger://"
LARGE = 16 << 20  # bytes of a bundle whose verification is told as it goes
Bundle = Annotated[Path, typer.Argument(help="The bundle file.", metavar="BUNDLE")]
PolicyFile = Annotated[
    Path,
    typer.Option("--policy", help="The keys you trust; it must come to you by another way than the ledger."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
Node = Annotated[
    Path | None,
    typer.Option("--node", help="The folder of a node that is a member: what it shows to the coordinator at a URL."),
]
_WHERE = f"{SCHEME}HOST:PORT of a coordinator, or the ledger's own file or database URL"


@app.command("verify")
def verify_command(bundle: Bundle, policy: PolicyFile, as_json: Json = False) -> None:
    """Check every byte of BUNDLE against the keys of POLICY. Exit status 1 if it does not verify."""
    from causaldao.console import command

    with command(as_json) as out:
        report = verified(bundle, policy)
        data = _summary(report)
        out.emit(data, lambda: _summary_text(data))


@app.command("show")
def show_command(
    source: Annotated[str, typer.Argument(help=f"A bundle file, or {SCHEME}HOST:PORT.", metavar="BUNDLE|URL")],
    policy: PolicyFile,
    node: Node = None,
    as_json: Json = False,
) -> None:
    """Verify a ledger, then print what happened, entry by entry."""
    from causaldao.console import command

    with command(as_json) as out:
        if source.startswith(SCHEME):
            lines, data = _agreed(source, node, _policy(policy))
            text = _agreed_text
        else:
            report = verified(Path(source), policy)
            lines, data, text = list(report.entries), _summary(report), _summary_text
        told = _told(lines)
        out.emit({**data, "timeline": told}, lambda: "\n".join([*(line["text"] for line in told), "", text(data)]))


@app.command("export")
def export_command(
    database: Annotated[str, typer.Argument(help="The ledger's file, or a database URL.", metavar="DB")],
    out_file: Annotated[Path, typer.Option("--out", help="Where to write the bundle; an older one is replaced.")],
    size: Annotated[
        int | None,
        typer.Option("--size", help="How many entries; by default those of the checkpoint that most cosigned."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the bundle of the ledger in DB."""
    from causaldao.console import command

    with command(as_json) as out:
        from causaldao.ledger.bundle import export
        from causaldao.ledger.log import Log

        with Log.read(_url(database)) as log:
            checkpoints, entries = log.checkpoints(), log.head.size
            if size is None:
                size = max(checkpoints, key=lambda one: (len(checkpoints[one]), one), default=entries)
            bundle = export(log, size)
        _write(out_file, bundle)
        cosigners = list(checkpoints.get(size, ()))
        data = {
            "bundle": str(out_file), "bytes": len(bundle), "sha256": _sha256(bundle), "size": size, "entries": entries,
            "cosigners": cosigners,
        }  # fmt: skip
        out.emit(
            data,
            f"Wrote {out_file}: {size} of {entries} entries, cosigned by {len(cosigners)}; {len(bundle)} bytes, "
            f"SHA-256 {data['sha256']}.",
        )


@app.command("receipt")
def receipt_command(
    index: Annotated[int, typer.Argument(help="The entry's index.", min=0)],
    source: Annotated[str, typer.Option("--from", help=f"{_WHERE}.", metavar="URL|DB")],
    policy: PolicyFile,
    out_folder: Annotated[
        Path, typer.Option("--out", help="The folder to write INDEX.tlog-proof and INDEX.record to.")
    ],
    node: Node = None,
    as_json: Json = False,
) -> None:
    """Fetch the receipt of an entry, and write it if it verifies. Exit status 13 if no quorum cosigned it yet."""
    from causaldao.console import command

    with command(as_json) as out:
        from causaldao.errors import GuaranteeError
        from causaldao.ledger.receipt import Pending

        trusted = _policy(policy)
        with _reading(source, node, trusted) as reader:
            found = reader.receipt(index)
        if isinstance(found, Pending):
            raise GuaranteeError(
                f"There is no receipt of entry {index} yet: no quorum has cosigned a checkpoint beyond size "
                f"{found.agreed_size}. Members cosign as a study goes on; ask again later."
            )
        line = _receipt(found.text.encode(), found.record, trusted, f"the receipt of entry {index} from {source}")
        if line.index != index:
            raise _finding(f"{source} sent a receipt of entry {line.index} in place of {index}")
        data = _receipt_data(line, trusted)
        for name, content in (("tlog-proof", found.text.encode()), ("record", found.record)):
            path = out_folder / f"{index}.{name}"
            _write(path, content)
            data[name.replace("-", "_")] = str(path)
        out.emit(data, lambda: f"{_receipt_text(data)}\nWrote {data['tlog_proof']} and {data['record']}.")


@app.command("check-receipt")
def check_receipt_command(
    receipt: Annotated[Path, typer.Argument(help="The receipt (C2SP tlog-proof).", metavar="FILE.tlog-proof")],
    record: Annotated[Path, typer.Option("--record", help="The entry's record, as it came with the receipt.")],
    policy: PolicyFile,
    as_json: Json = False,
) -> None:
    """Verify a receipt offline. Exit status 1 if it does not prove the record."""
    from causaldao.console import command

    with command(as_json) as out:
        from causaldao.ledger.reader import MAX_RECORD_BYTES
        from causaldao.ledger.verify import MAX_RECEIPT

        trusted = _policy(policy)
        text, data = _read(receipt, "receipt", MAX_RECEIPT + 1), _read(record, "record", MAX_RECORD_BYTES + 1)
        found = _receipt_data(_receipt(text, data, trusted, str(receipt)), trusted)
        out.emit(found, lambda: _receipt_text(found))


@app.command("watch")
def watch_command(
    source: Annotated[str, typer.Argument(help=f"{_WHERE}.", metavar="URL|DB")],
    policy: PolicyFile,
    state: Annotated[
        Path | None, typer.Option("--state", help="The file that keeps what was seen, so that nothing is told twice.")
    ] = None,
    node: Node = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=1.0)] = 10.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, then end: for a timer of your own.")] = False,
    as_json: Json = False,
) -> None:
    """Follow a ledger as an independent monitor: verify each checkpoint and each entry, and tell what happens. Exit
    status 1, with both checkpoints, when the ledger contradicts itself. With --json an envelope for each look that
    brought news."""
    import time

    from causaldao.console import command

    with command(as_json) as out:
        from causaldao.errors import NetworkError

        watch = _Watch(_policy(policy), state, out)
        while True:
            try:
                # Opened anew: the node's certificate is renewed while this goes on.
                with _reading(source, node, watch.policy) as reader:
                    watch.look(reader)
            except NetworkError as error:
                if once:
                    raise
                watch.complain(error.message)
            if once:
                return
            time.sleep(every)


class _Watch:
    """What a watch has told so far."""

    def __init__(self, policy: Policy, state: Path | None, out: Output) -> None:
        from causaldao.ledger.timeline import Timeline

        self.policy = policy
        self._state = state
        self._out = out
        self._timeline = Timeline()
        self._monitor: Monitor | None = None
        self._cosigned: tuple[int, tuple[str, ...]] | None = None
        self._complained = ""

    def look(self, reader: Reader) -> None:
        from causaldao.ledger.monitor import Monitor

        first = self._monitor is None
        if self._monitor is None:
            self._monitor = Monitor(reader, self.policy, self._state)
        monitor = self._monitor
        monitor.reader = reader
        lines: list[dict[str, Any]] = []
        for page in monitor.follow(reader.checkpoint(head=True).note):
            told = [_line_data(line, self._timeline) for line in page]
            lines += told if self._out.as_json else []
            if not self._out.as_json:
                self._out.emit({}, "\n".join(line["text"] for line in told))
        self._complained = ""
        agreed = reader.checkpoint().note
        cosigned = (monitor.fits(agreed).size, monitor.cosigners(agreed))
        if first or lines or cosigned != self._cosigned:
            self._cosigned = cosigned
            self._say(monitor, cosigned, lines)

    def _say(self, monitor: Monitor, cosigned: tuple[int, tuple[str, ...]], lines: list[dict[str, Any]]) -> None:
        size, by = cosigned
        enough = self.policy.satisfied(by)
        data = {
            "origin": self.policy.origin, "size": monitor.seen.size, "root": monitor.seen.root.hex(), "timeline": lines,
            "cosigned": {"size": size, "by": list(by), "satisfied": enough, "asked": self.policy.asked},
        }  # fmt: skip
        word = "as the policy asks" if enough else f"NOT enough for the policy, which asks for {self.policy.asked}"
        text = f"seen {data['size']} entries, root {data['root']}; cosigned up to {size} by {', '.join(by) or 'nobody'}"
        self._out.emit(data, f"# {text}: {word}")

    def complain(self, reason: str) -> None:
        """That the ledger cannot be reached, once until it can."""
        if reason != self._complained:
            self._complained = reason
            typer.echo(f"# {reason} Trying again.", err=True)


def verified(bundle: Path, policy_file: Path) -> Report:
    """The report of a bundle that verifies. Large ones tell on stderr how far they are. Finding if it does not."""
    from causaldao.errors import LedgerError
    from causaldao.ledger.verify import MAX_BYTES, verify

    policy = _policy(policy_file)
    data = _read(bundle, "bundle", MAX_BYTES + 1)
    try:
        return verify(data, policy, progress=_progress(len(data)))
    except LedgerError as error:
        raise _finding(f"{bundle}: {error.message} (policy {policy.fingerprint})", error) from error


def _progress(size: int) -> Callable[[int, int], None]:
    """Tells each tenth of the work on a large bundle."""
    last = [0]

    def tell(done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if size >= LARGE and tenth > last[0]:
            last[0] = tenth
            typer.echo(f"{10 * tenth} % verified", err=True)

    return tell


def _policy(path: Path) -> Policy:
    from causaldao.errors import ConfigurationError
    from causaldao.ledger.verify import Policy

    try:
        return Policy.parse(_read(path, "policy", 1 << 20).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The policy {path} is not UTF-8 text (byte {error.start}).") from error


@contextmanager
def _reading(source: str, node: Path | None, policy: Policy) -> Iterator[Reader]:
    """A ledger at a URL, shown a member's certificate, or in its database."""
    from causaldao.errors import MisuseError
    from causaldao.ledger.reader import Local, Remote, credentials

    if source.startswith(SCHEME):
        address = source.removeprefix(SCHEME).rstrip("/")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise MisuseError(f"{source!r} is no ledger's URL: write {SCHEME}HOST:PORT, such as {SCHEME}hub:9094.")
        if node is None:
            raise MisuseError(
                "A coordinator shows its ledger to members only: name a member's node folder with --node."
            )
        with Remote(address, credentials(node)) as reader:
            yield reader
        return
    from causaldao.ledger.log import Log

    with Log.read(_url(source)) as log:
        yield Local(log, lambda: _electorate(policy))


def _electorate(policy: Policy) -> tuple[list[Verifier], int]:
    """The policy's witnesses, and how many of them it asks for."""
    from causaldao.ledger.note import Verifier

    names = sorted(policy.witnesses)
    needed = next((k for k in range(len(names) + 1) if policy.satisfied(names[:k])), len(names))
    return [Verifier(*policy.witnesses[name]) for name in names], needed


def _agreed(source: str, node: Path | None, policy: Policy) -> tuple[list[Line], dict[str, Any]]:
    """What a coordinator shows, up to the newest checkpoint that its members agreed on, verified."""
    from causaldao.ledger.monitor import Monitor

    with _reading(source, node, policy) as reader:
        monitor = Monitor(reader, policy)
        shown = reader.checkpoint()
        lines = [line for page in monitor.follow(shown.note) for line in page]
    by = monitor.cosigners(shown.note)
    if not policy.satisfied(by):
        raise _finding(
            f"{source}: its newest checkpoint, of size {monitor.seen.size}, is cosigned by "
            f"{', '.join(by) or 'nobody'}, but the policy asks for {policy.asked}"
        )
    return lines, {
        "origin": policy.origin, "size": monitor.seen.size, "root": monitor.seen.root.hex(), "cosigners": list(by),
        "asked": policy.asked, "log_size": shown.log_size, "policy_fingerprint": policy.fingerprint,
    }  # fmt: skip


def _agreed_text(data: dict[str, Any]) -> str:
    more = data["log_size"] - data["size"]
    return (
        f"The ledger {data['origin']} shows {data['size']} entries under a checkpoint that the policy accepts"
        f"{f'; {more} newer ones wait for cosignatures' if more > 0 else ''}.\n"
        f"root       {data['root']}\ncosigners  {', '.join(data['cosigners']) or 'none'} (asked: {data['asked']})\n"
        f"policy     {data['policy_fingerprint']}\n"
        "Signatures of members in the entries are checked when a bundle is verified, not here."
    )


def _receipt(text: bytes, record: bytes, policy: Policy, what: str) -> Line:
    from causaldao.errors import LedgerError
    from causaldao.ledger.verify import verify_receipt

    try:
        return verify_receipt(text, record, policy)
    except LedgerError as error:
        raise _finding(f"{what} does not verify: {error.message} (policy {policy.fingerprint})", error) from error


def _receipt_data(line: Line, policy: Policy) -> dict[str, Any]:
    from causaldao.ledger.timeline import Timeline

    told = _line_data(line, Timeline())
    return {"origin": policy.origin, "entry": told, "asked": policy.asked, "policy_fingerprint": policy.fingerprint}


def _receipt_text(data: dict[str, Any]) -> str:
    return (
        f"The receipt verifies: this is an entry of {data['origin']}, under a checkpoint with the cosignatures that "
        f"the policy asks for ({data['asked']}).\n{data['entry']['text']}\npolicy  {data['policy_fingerprint']}"
    )


def _finding(message: str, error: Any = None) -> Exception:
    from causaldao.errors import Finding

    return Finding(message if message.endswith((".", ")")) else f"{message}.", problems=getattr(error, "problems", ()))


def _url(database: str) -> str:
    return database if "://" in database else f"sqlite:///{database}"


def _read(path: Path, what: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a file; what is longer is left for the check that refuses it."""
    from causaldao.errors import MisuseError

    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise MisuseError(f"The {what} {path} cannot be read: {error.strerror}. Check the path.") from error


def _write(path: Path, data: bytes) -> None:
    """Replace the file as a whole, so that no reader meets half of it."""
    from causaldao.errors import MisuseError

    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise MisuseError(f"{path} cannot be written: {error.strerror}. Choose another --out.") from error


def _sha256(data: bytes) -> str:
    from causaldao.signing import sha256

    return sha256(data)


def _summary(report: Report) -> dict[str, Any]:
    return {
        "origin": report.origin,
        "size": report.size,
        "root": report.root,
        "time": report.time,
        "payloads": len(report.payloads),
        "erased": len(report.erased),
        "members": list(report.members),
        "faulty": report.faulty,
        "quorum": report.quorum,
        "cosigners": list(report.cosigners),
        "strangers": list(report.strangers),
        "policy_fingerprint": report.policy_fingerprint,
    }


def _summary_text(data: dict[str, Any]) -> str:
    from causaldao.ledger.timeline import names

    erased = f" ({data['erased']} more were erased)" if data["erased"] else ""
    strangers = f"; not counted, since the policy does not know them: {names(data['strangers'])}"
    return (
        f"The ledger {data['origin']} verifies: {data['size']} entries up to {data['time']}, {data['payloads']} "
        f"payloads{erased}.\n"
        f"members    {len(data['members'])}: {', '.join(data['members']) or 'none'}; {data['quorum']} of them decide, "
        f"{data['faulty']} may lie\n"
        f"cosigners  {len(data['cosigners'])}: {', '.join(data['cosigners']) or 'none'}"
        f"{strangers if data['strangers'] else ''}\n"
        f"root       {data['root']}\n"
        f"policy     {data['policy_fingerprint']}\n"
        "Compare root and size with a member's, and the policy's fingerprint with the one you were given: "
        "an older bundle verifies too, and so does any under a policy of its own."
    )


def _told(lines: list[Line]) -> list[dict[str, Any]]:
    from causaldao.ledger.timeline import Timeline

    timeline = Timeline()
    return [_line_data(line, timeline) for line in lines]


def _line_data(line: Line, timeline: Any) -> dict[str, Any]:
    return {
        "index": line.index,
        "time": line.time,
        "kind": line.kind,
        "body": dict(line.body),
        "payloads": list(line.payloads),
        "text": timeline.line(line.index, line.time, line.kind, line.body),
    }
