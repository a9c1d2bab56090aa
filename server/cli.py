"""`causaldao coordinator` and `causaldao study`: what an operator does."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.console import command

if TYPE_CHECKING:
    from causaldao.server.ballot_box import MotionRow
    from causaldao.server.home import Home
    from causaldao.study import Study

coordinator_app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)
study_app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)

_LONGEST = 10_000  # characters of a motion in words
Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]
StudyFile = Annotated[Path, typer.Argument(help="A study file (TOML).")]


@coordinator_app.callback()
def _coordinator() -> None:
    """What an operator does: invite and admit members, run the coordinator, see where everything stands."""


@study_app.callback()
def _study() -> None:
    """Check, propose and run studies."""


@coordinator_app.command()
def init(
    folder: Folder,
    federation: Annotated[str, typer.Option(help="The federation's name: a-z, 0-9 and '-'.")],
    host: Annotated[str, typer.Option(help="The name or address under which members reach this machine.")] = "",
    bind: Annotated[str, typer.Option(help="The address to listen on.")] = "0.0.0.0",
    fleet_port: Annotated[
        int, typer.Option(help="Where nodes connect (gRPC, mutual TLS).", envvar="CAUSALDAO_FLEET_PORT")
    ] = 9092,
    enrolment_port: Annotated[
        int,
        typer.Option(help="Where nodes join and renew certificates (gRPC, TLS).", envvar="CAUSALDAO_ENROLMENT_PORT"),
    ] = 9093,
    ledger_port: Annotated[
        int,
        typer.Option(
            help="Where members read the ledger (gRPC, mutual TLS); 0: nowhere.", envvar="CAUSALDAO_LEDGER_PORT"
        ),
    ] = 9094,
    database: Annotated[
        str, typer.Option(help="A database URL; PostgreSQL: postgresql+psycopg://host/name.")
    ] = "sqlite:///coordinator.db",
    faulty: Annotated[int, typer.Option(help="How many members may lie.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a coordinator: keys, certificate authority, ledger, settings. Nothing listens yet."""
    with command(as_json) as output:
        from pydantic import ValidationError

        from causaldao.errors import ConfigurationError
        from causaldao.server.home import Home, Settings, utc_now

        try:
            settings = Settings(
                federation=federation, host=host or socket.getfqdn(), bind=bind, fleet_port=fleet_port,
                enrolment_port=enrolment_port, ledger_port=ledger_port, database=database, faulty=faulty,
            )  # fmt: skip
        except ValidationError as error:
            problems = [f"--{'-'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigurationError("The coordinator's settings are wrong:", problems=problems) from error
        home = Home.create(folder, settings, utc_now())
        data = {
            "folder": str(folder), "federation": federation, "fleet": home.fleet, "enrolment": home.enrolment,
            "ledger": home.ledger, "key": home.key.public.to_text("coordinator"),
            "authority": home.authority.fingerprint,
        }  # fmt: skip
        output.emit(
            data,
            f"coordinator of {federation} in {folder}\n  members will reach it at {home.fleet} and {home.enrolment}\n"
            f"  {_ledger_text(home.ledger)}\n"
            f"  authority {home.authority.fingerprint}\n"
            f"next: causaldao coordinator start {folder}, and causaldao coordinator invite {folder} NAME",
        )


@coordinator_app.command()
def invite(
    folder: Folder, name: Annotated[str, typer.Argument(help="The member's name.")], as_json: Json = False
) -> None:
    """A join token for one institution: single use, 15 minutes. Send it by a way that you trust."""
    with command(as_json) as output:
        from causaldao.enrolment import TOKEN_MINUTES, Token
        from causaldao.server.home import utc_now
        from causaldao.signing import check_name

        home = _home(folder)
        secret = home.registry.invite(check_name(name), utc_now())
        token = Token(home.origin, name, home.enrolment, secret, home.authority.certificate_der).to_text()
        data = {"name": name, "token": token, "minutes": TOKEN_MINUTES}
        output.emit(data, token)


@coordinator_app.command()
def admit(
    folder: Folder,
    names: Annotated[list[str] | None, typer.Argument(help="Members that have joined.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Everybody who has joined and waits.")] = False,
    as_json: Json = False,
) -> None:
    """Admit members that have joined: from now on their keys are heard. Compare their key ids by telephone first.

    Once a study was proposed the members decide: a motion is put for each, and they vote on it.
    """
    with command(as_json) as output:
        from causaldao.errors import MisuseError
        from causaldao.server.home import utc_now

        home = _home(folder)
        waiting = [member.name for member in home.registry.members() if member.state == "pending"]
        chosen = waiting if everyone else list(names or ())
        if not chosen:
            raise MisuseError(f"Name whom to admit, or use --all; waiting: {', '.join(waiting) or 'nobody'}.")
        found = [home.admit(name, utc_now()) for name in chosen]
        admitted = [member for member in found if member.state == "admitted"]
        motions = _motions(home, "member.admit", chosen)
        data = {"admitted": [{"name": member.name, "key": member.signing} for member in admitted], "motions": motions}
        lines = [f"admitted {member.name}, key {member.key.id}" for member in admitted]
        output.emit(data, "\n".join([*lines, *map(_motion_text, motions)]))


@coordinator_app.command()
def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The member to bar.")],
    reason: Annotated[str, typer.Option(help="Why; it stands on the ledger.")] = "revoked by the operator",
    as_json: Json = False,
) -> None:
    """Bar a member, at once and for ever: the gateway and a running study refuse it from the next call on.

    Once a study was proposed the members decide whether the ledger says so too: a motion is put, and they vote on it.
    """
    with command(as_json) as output:
        from causaldao.server.home import utc_now

        home = _home(folder)
        member = home.revoke(name, reason, utc_now())
        motions = _motions(home, "member.revoke", [name])
        data = {"name": member.name, "state": member.state, "motions": motions}
        output.emit(data, "\n".join([f"{name} is revoked", *map(_motion_text, motions)]))


@coordinator_app.command()
def faulty(
    folder: Folder, number: Annotated[int, typer.Argument(help="How many members may lie.")], as_json: Json = False
) -> None:
    """Change how many members may lie, and with it how many votes a change needs. The members decide it by vote."""
    with command(as_json) as output:
        from causaldao.server.home import utc_now

        home = _home(folder)
        put = home.set_faulty(number, utc_now())
        motions = [] if put is None else [one for one in _motions(home, put.kind) if one["id"] == put.id]
        text = "\n".join(map(_motion_text, motions)) or f"{number} of the members may lie"
        output.emit({"faulty": number, "motions": motions}, text)


@coordinator_app.command()
def edit(
    folder: Folder,
    study: Annotated[str, typer.Argument(help="A study with an adopted graph, by name or hash.")],
    edge: Annotated[tuple[str, str], typer.Option(help="The edge, named as it is now.", metavar="CAUSE EFFECT")],
    change: Annotated[str, typer.Option(help="add, remove or reverse.")],
    reason: Annotated[str, typer.Option(help="Why, in a sentence or two; it stands on the ledger.")],
    as_json: Json = False,
) -> None:
    """Put an edit of one edge of a study's graph to the vote. Members may propose their own: node propose-edit.

    An edge is named as it is now: reverse A B makes B -> A of A -> B (or of A - B); add A B makes A -> B.
    """
    with command(as_json) as output:
        from causaldao.edits import Edit
        from causaldao.governance import EDIT
        from causaldao.server import edits
        from causaldao.server.home import utc_now
        from causaldao.server.studies import find

        home, (cause, effect) = _home(folder), edge
        body: dict[str, Any] = {
            "study": find(home, study).hash, "edge": [cause, effect], "change": change, "reason": reason,
        }  # fmt: skip
        with home.log() as log:
            body["does"] = edits.stands(log, body["study"]).require_fit(Edit.of(body)).digest
        put = home.motions.put(EDIT, body, utc_now())
        motions = [one for one in _motions(home, EDIT) if one["id"] == put.id]
        output.emit({"motions": motions}, "\n".join(map(_motion_text, motions)))


@coordinator_app.command()
def graph(
    folder: Folder,
    study: Annotated[str, typer.Argument(help="A study with an adopted graph, by name or hash.")],
    as_json: Json = False,
) -> None:
    """A study's graph after the edits that its members voted, its effects under it, and the knowledge table that a
    following study would take. The study's own result stays as it is; pictures are written beside it."""
    with command(as_json) as output:
        from causaldao.audit.edits import text
        from causaldao.server import edited
        from causaldao.server.studies import find

        home = _home(folder)
        row = find(home, study)
        with home.log() as log:
            shown, found = edited.read(log, row.hash)
            files = edited.write(home.study_folder(row.hash), shown, found, edited.ballots(log, row.hash))
        lines = [*text(shown), "for a following study, as knowledge:", *shown["knowledge"].splitlines()]
        output.emit({**shown, "files": [str(file) for file in files]}, "\n".join([*lines, f"see {files[-1]}"]))


@coordinator_app.command()
def motions(folder: Folder, as_json: Json = False) -> None:
    """What the members were asked to vote on, what became of it, and who voted."""
    with command(as_json) as output:
        found = _motions(_home(folder))
        output.emit({"motions": found}, "\n".join(map(_motion_text, found)) or "no motion was put")


@coordinator_app.command()
def start(
    folder: Folder,
    log_format: Annotated[str, typer.Option(help="text or json")] = "text",
) -> None:
    """Run the coordinator until SIGTERM: gateway, enrolment, and Flower's SuperLink under them."""
    with command(False):
        from causaldao.logs import configure
        from causaldao.server.daemon import start as run

        configure(log_format)
        run(_home(folder))


@coordinator_app.command()
def status(folder: Folder, as_json: Json = False) -> None:
    """Where everything stands: process, members, studies, and who of a study's members did what."""
    with command(as_json) as output:
        data = _status(_home(folder))
        output.emit(data, lambda: _status_text(data))


@study_app.command()
def check(
    study: StudyFile,
    members: Annotated[int, typer.Option(help="How many members you expect; 0 leaves their number open.")] = 0,
    records: Annotated[int, typer.Option(help="How many records each has; 0 takes the study's n_min.")] = 0,
    find: Annotated[float, typer.Option(help="The weakest partial correlation that the graph should show.")] = 0.1,
    as_json: Json = False,
) -> None:
    """Validate a study, say what each member would spend on it, and how epsilon is best shared."""
    with command(as_json) as output:
        from causaldao.advice import advised, view, views
        from causaldao.budget import plan
        from causaldao.decisions import (
            answers_needed,
            cautions,
            environments_needed,
            graphs_needed,
            least_members,
            require_members,
            supporters,
        )  # fmt: skip
        from causaldao.errors import MisuseError

        checked = _study_of(study)
        needed = least_members(checked)
        require_members(checked, members or needed)
        planned, size = plan(checked), (members or needed, records or checked.members.n_min)
        if not 0 < find < 1:
            raise MisuseError(f"--find {find:g} must lie between 0 and 1: it is a partial correlation.")
        shares = views(checked, *size)
        best = advised(shares, find)
        data = {
            "name": checked.name, "hash": checked.hash, "epsilon": planned.epsilon, "delta": planned.delta,
            "releases": [vars(spend) for spend in planned.spends], "members_needed": needed,
            "must_answer": answers_needed(checked, members or needed), "warnings": cautions(checked, members),
            "split": {
                "members": size[0], "records": size[1], "find": find, "now": vars(view(checked, *size)),
                "shares": [vars(share) for share in shares], "advised": None if best is None else best.evidence,
                **({"effects": checked.privacy.split.effects} if checked.robust_effects else {}),
                **({"supporters": supporters(checked, size[0])} if checked.local else {}),
            },
            **({"environments": environments_needed(checked)} if checked.environments else {}),
            **({"ballots_needed": graphs_needed(checked, size[0], size[0])} if checked.local else {}),
        }  # fmt: skip
        output.emit(data, lambda: _checked(data))


@study_app.command()
def propose(folder: Folder, study: StudyFile, as_json: Json = False) -> None:
    """Put a study before the members: on the ledger, and where their nodes find it to approve."""
    with command(as_json) as output:
        from causaldao.server.studies import misfits, put_forward

        home, checked = _home(folder), _study_of(study)
        row, wrong = put_forward(home, checked), misfits(home, checked)
        lines = [f"  {name}: {problem}" for name, problems in wrong.items() for problem in problems]
        output.emit(
            {"name": row.name, "hash": row.hash, "state": row.state, "misfits": wrong},
            "\n".join([
                f"{row.name} is proposed: {row.hash}",
                *(["what its members' dictionaries say against it:", *lines] if lines else []),
                f"each institution now decides: causaldao node approve DIR {row.name}",
            ]),
        )  # fmt: skip


@study_app.command()
def run(folder: Folder, study: Annotated[str, typer.Argument(help="A study file, or a proposed study.")],
        as_json: Json = False) -> None:  # fmt: skip
    """Run a study to its end, proposing it first if need be. Interrupted, it goes on: see coordinator status."""
    with command(as_json) as output:
        from causaldao.server.studies import find, put_forward

        home = _home(folder)
        row = put_forward(home, _study_of(Path(study))) if Path(study).suffix == ".toml" else find(home, study)
        _conduct(home, row.hash, output)


@study_app.command()
def resume(
    folder: Folder,
    study: Annotated[str, typer.Argument(help="A proposed study, by name or hash.")],
    as_json: Json = False,
) -> None:
    """Go on with a study that stopped, from its last state: a new Flower run. Nothing is released twice."""
    with command(as_json) as output:
        from causaldao.server.studies import find

        home = _home(folder)
        _conduct(home, find(home, study).hash, output)


def _conduct(home: Home, study: str, output: Any) -> None:
    import json

    from causaldao.server.progress import Progress
    from causaldao.server.studies import begin, follow, last_event

    row, after = home.registry.study(study), last_event(home, study)
    run_id = begin(home, row)
    with Progress(quiet=output.as_json) as progress:
        follow(home, row, run_id, after, progress)
    folder = home.study_folder(study)
    result = json.loads((folder / "result.json").read_text())
    output.emit({"folder": str(folder), "result": result}, f"{row.name} is closed: {folder / 'report.html'}")


def _motions(home: Home, kind: str = "", members: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What was put to the vote, oldest first; of a ``kind``: what is open, about these members if any are named."""
    from causaldao.governance import describe
    from causaldao.server.home import utc_now

    epoch, rows = home.motions.settle(utc_now())
    if kind:
        open_ = [row for row in rows if row.kind == kind and row.state == "voting"]
        rows = tuple(row for row in open_ if not members or row.body["member"] in members)
    changes = _changes(home, rows)
    return [
        {
            "id": row.id, "kind": row.kind, "body": row.body, "state": row.state, "votes": sorted(row.votes),
            "words": describe(row.kind, row.body, epoch.faulty if row.state == "voting" else None),
            "needed": epoch.quorum, "members": len(epoch.members), "change": changes.get(row.id, ""),
        }
        for row in rows
    ]  # fmt: skip


def _changes(home: Home, rows: Sequence[MotionRow]) -> dict[str, str]:
    """What each edit that is open would change, and why one that is void cannot be any more, by motion."""
    from causaldao.governance import EDIT
    from causaldao.server import edits

    wanted = [row for row in rows if row.kind == EDIT and row.state != "passed"]
    if not wanted:
        return {}
    with home.log() as log:
        told = {row.id: edits.words(log, row.body) for row in wanted}
    return {row.id: told[row.id] for row in wanted if row.state == "voting" or not told[row.id].startswith("now: ")}


def _motion_text(motion: dict[str, Any]) -> str:
    from causaldao.enrolment import visible

    named = f"motion {motion['id'][:12]} ({visible(motion['words'], _LONGEST)})"
    change = f"\n  {visible(motion['change'], _LONGEST)}" if motion["change"] else ""
    if motion["state"] != "voting":
        return f"{named}: {motion['state']}{change}"
    voted = f"; so far: {', '.join(motion['votes'])}" if motion["votes"] else ""
    return (
        f"{named} needs {motion['needed']} of {motion['members']} votes{voted}{change}\n"
        f"  each owner runs: causaldao node vote DIR {motion['id'][:12]}"
    )


def _home(folder: Path) -> Home:
    from causaldao.server.home import Home

    return Home.open(folder)


def _study_of(path: Path) -> Study:
    from causaldao.errors import ConfigurationError
    from causaldao.study import Study

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The study {path} cannot be read: {error}.") from error
    return Study.from_toml(text, path.name)


def _checked(data: dict[str, Any]) -> str:
    said = (
        f"{data['name']}: valid\n  hash {data['hash']}\n  each member spends at most epsilon {data['epsilon']:.4f} at "
        f"delta {data['delta']:g}\n  needs at least {data['members_needed']} members"
        f"{_of(data['split']['members'], data['members_needed'])} {data['must_answer']} must answer each step"
    )
    if data.get("ballots_needed", 0) > data["must_answer"]:
        said += f"; {data['ballots_needed']} must vote, if all answer the roll call"
    said = "\n".join([said, *_conditions(data.get("environments", []))])
    return "\n".join([said, *_shared(data["split"]), *(f"  warning: {caution}" for caution in data["warnings"])])


def _of(members: int, needed: int) -> str:
    return ", of whom" if members == needed else f"; of {members} members"


def _conditions(environments: Sequence[dict[str, Any]]) -> list[str]:
    """How many members each environment needs, for people."""
    if not environments:
        return []
    least, sure = environments[0]["members_needed"], environments[0]["whoever_lies"]
    words = [
        f"{one['name']} (acts on {', '.join(one['targets']) or 'nothing'}{', effects are read there' * one['effects']})"
        for one in environments
    ]
    more = f"; {sure}, if those who may lie can declare another" if sure > least else ""
    return [
        f"  members are compared within their environment: {', '.join(words)}",
        f"    each needs {least} members who declare it{more}; with fewer, its members are set aside",
    ]


def _shared(split: dict[str, Any]) -> list[str]:
    """What the share of epsilon for the evidence buys, and which share is advised, for people."""
    now, find, best = split["now"], split["find"], split["advised"]
    lines = [f"  effects by members' sums have {split['effects']:g} of epsilon"] if "effects" in split else []
    if now["pool"] is None:
        reach = "within" if now["member"] <= find else "beyond"
        return [
            f"  the ballot has all of epsilon. With {split['records']} records, 9 times in 10 a member finds a partial",
            f"    correlation of {now['member']:.2f}, in variables whose standard deviation is a quarter of the width",
            f"    of their bounds: one of {find:g} is {reach} its reach. A mark needs {split['supporters']} of "
            f"{split['members']} supporters",
        ]
    lines += [
        f"  evidence has {now['evidence']:g} of epsilon. With {split['members']} members of {split['records']} "
        f"records, 9 times in 10\n    the pool finds a partial correlation of {now['pool']:.2f}, a member alone one of "
        f"{now['member']:.2f}, in variables whose standard\n    deviation is a quarter of the width of their bounds"
    ]
    if best is None:
        return [*lines, f"    no share finds one of {find:g}: ask for more records or members, or a larger epsilon"]
    if best == now["evidence"]:
        return [*lines, f"    that is the smallest share that finds one of {find:g}"]
    rest = "effects and training" if "effects" in split else "training"
    what = f"leaves more to {rest}" if best < now["evidence"] else "what is trained rests on the graph"
    return [*lines, f"    advised: evidence = {best:g}, the smallest share that finds one of {find:g}: {what}"]


def _status(home: Home) -> dict[str, Any]:
    from causaldao.server.standing import summary

    studies = []
    for row in home.registry.studies():
        standings = home.registry.standings(row.hash)
        members = {
            name: {"state": s.state, "reason": s.reason, "code": s.code, "exit_code": s.exit_code}
            for name, s in standings.items()
        }
        found = {"name": row.name, "hash": row.hash, "state": row.state, "proposed": row.proposed.isoformat()}
        studies.append({**found, "summary": summary(standings) if standings else "", "members": members})
    joined = [
        {
            "name": member.name, "state": member.state, "key": member.signing, "key_id": member.key.id,
            "version": member.version,
            "last_seen": None if member.last_seen is None else member.last_seen.isoformat(),
        }
        for member in home.registry.members()
    ]  # fmt: skip
    key = home.key.public
    return {
        "federation": home.origin, "key": key.to_text("coordinator"), "key_id": key.id, "process": home.status(),
        "ledger": home.ledger, "members": joined, "studies": studies,
    }  # fmt: skip


def _status_text(data: dict[str, Any]) -> str:
    process = data["process"]
    running = f"process {process['pid']}" if process else "not running"
    lines = [f"{data['federation']}: {running}, key {data['key_id']}", _ledger_text(data["ledger"])]
    lines += _table(
        "members",
        [(m["name"], m["state"], f"key {m['key_id']}, last call {m['last_seen'] or 'never'}") for m in data["members"]],
    )
    for study in data["studies"]:
        lines += [f"study {study['name']} ({study['hash'][:12]}): {study['state']}  {study['summary']}"]
        lines += _table("", [(name, s["state"], s["reason"]) for name, s in study["members"].items()])
    return "\n".join(lines)


def _ledger_text(address: str) -> str:
    return f"members read the ledger at ledger://{address}" if address else "the ledger is not served to members"


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(2)]
    shown = [f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip() for row in rows]
    return [*([title] if title and rows else []), *shown]
