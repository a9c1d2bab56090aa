"""The ledger's commands: verify, show, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from causaldao.ledger.verify import Line, Report

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", help="Verify, read and export a ledger.", no_args_is_help=True
)

Bundle = Annotated[Path, typer.Argument(help="The bundle file.", metavar="BUNDLE")]
PolicyFile = Annotated[
    Path,
    typer.Option("--policy", help="The keys you trust; it must come to you by another way than the bundle."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]


@app.command("verify")
def verify_command(bundle: Bundle, policy: PolicyFile, as_json: Json = False) -> None:
    """Check every byte of BUNDLE against the keys of POLICY. Exit status 1 if it does not verify."""
    from causaldao.console import command

    with command(as_json) as out:
        report = verified(bundle, policy)
        data = _summary(report)
        out.emit(data, lambda: _summary_text(data))


@app.command("show")
def show_command(bundle: Bundle, policy: PolicyFile, as_json: Json = False) -> None:
    """Verify BUNDLE, then print what happened, entry by entry."""
    from causaldao.console import command

    with command(as_json) as out:
        report = verified(bundle, policy)
        data = {**_summary(report), "timeline": [_line_data(line) for line in report.entries]}
        out.emit(data, lambda: "\n".join([*map(_line_text, report.entries), "", _summary_text(data)]))


@app.command("export")
def export_command(
    database: Annotated[str, typer.Argument(help="The ledger's file, or a database URL.", metavar="DB")],
    out_file: Annotated[Path, typer.Option("--out", help="Where to write the bundle; an older one is replaced.")],
    as_json: Json = False,
) -> None:
    """Write the bundle of the ledger in DB."""
    from causaldao.console import command

    with command(as_json) as out:
        from causaldao.ledger.bundle import export
        from causaldao.ledger.log import Log

        with Log.read(database if "://" in database else f"sqlite:///{database}") as log:
            bundle = export(log)
        _write(out_file, bundle)
        data = {"bundle": str(out_file), "bytes": len(bundle), "sha256": _sha256(bundle)}
        out.emit(data, f"Wrote {out_file}: {len(bundle)} bytes, SHA-256 {data['sha256']}.")


def verified(bundle: Path, policy_file: Path) -> Report:
    from causaldao.errors import ConfigurationError, Finding, LedgerError
    from causaldao.ledger.verify import MAX_BYTES, Policy, verify

    try:
        policy = Policy.parse(_read(policy_file, "policy", 1 << 20).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The policy {policy_file} is not UTF-8 text (byte {error.start}).") from error
    try:
        return verify(_read(bundle, "bundle", MAX_BYTES + 1), policy)
    except LedgerError as error:
        raise Finding(f"{bundle}: {error.message} (policy {policy.fingerprint})", problems=error.problems) from error


def _read(path: Path, what: str, limit: int) -> bytes:
    """At most ``limit`` bytes of a file; what is longer is left for the check that refuses it."""
    from causaldao.errors import MisuseError

    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise MisuseError(f"The {what} {path} cannot be read: {error.strerror}. Check the path.") from error


def _write(path: Path, data: bytes) -> None:
    """Replace the file as a whole, so that no reader meets half a bundle."""
    from causaldao.errors import MisuseError

    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise MisuseError(f"The bundle {path} cannot be written: {error.strerror}. Choose another --out.") from error


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
        "members": list(report.members),
        "cosigners": list(report.cosigners),
        "policy_fingerprint": report.policy_fingerprint,
    }


def _summary_text(data: dict[str, Any]) -> str:
    return (
        f"The ledger {data['origin']} verifies: {data['size']} entries up to {data['time']}, "
        f"{data['payloads']} payloads, {len(data['members'])} members, {len(data['cosigners'])} cosigners.\n"
        f"root    {data['root']}\n"
        f"policy  {data['policy_fingerprint']}\n"
        "Compare root and size with a member's, and the policy's fingerprint with the one you were given: "
        "an older bundle verifies too, and so does any under a policy of its own."
    )


def _line_data(line: Line) -> dict[str, Any]:
    return {
        "index": line.index,
        "time": line.time,
        "kind": line.kind,
        "body": dict(line.body),
        "payloads": list(line.payloads),
    }


def _line_text(line: Line) -> str:
    said = "  ".join(f"{_short(name)}={_short(value)}" for name, value in sorted(line.body.items()))
    return f"{line.index:>6}  {line.time}  {line.kind:<16}  {said}".rstrip()


def _short(value: Any) -> str:
    """A value on one line; what a member wrote cannot move the reader's cursor."""
    import json

    text = json.dumps(value) if not isinstance(value, str) else json.dumps(value)[1:-1]
    return text if len(text) <= 40 else f"{text[:37]}..."
