"""`causaldao node`: what an institution does, from its first file to its last study.

Only `join`, `studies`, `start`, `motions`, `vote`, `propose-edit`, `rotate`, and `approve` and `decline` of a study
that is given by name, speak to the coordinator.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.console import command
from causaldao.errors import ConfigurationError, IdentityError, MisuseError, RefusedError

if TYPE_CHECKING:
    from causaldao.client.votes import Motion
    from causaldao.study import Study

node_app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)

_SHORTEST = 8  # digits of a hash that may stand for it
_BAR = 30
_HASH = re.compile(r"[0-9a-f]{64}")
_REMEDIES = {  # by the status of a witness
    "retired": "if its state is lost, or was restored from a copy: causaldao node rotate {node}",
    "alarmed": "keep {node}/witness.db, which holds both checkpoints; tell the other members before you do anything",
}
_LONGEST = 40_000  # characters of a line: more than any text of a study

Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
Folder = Annotated[Path, typer.Argument(help="The node's folder, with its node.toml.")]
Chosen = Annotated[str, typer.Argument(help="A study file (TOML), or the name or hash of a study that is offered.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; a script must say so.")]
Edge = Annotated[tuple[str, str], typer.Option(help="The edge, named as it is now.", metavar="CAUSE EFFECT")]
Change = Annotated[str, typer.Option(help="add, remove or reverse.")]
By = Annotated[str, typer.Option(help="Who decides, for the record.")]


@node_app.callback()
def _node() -> None:
    """What an institution does: offer data, approve studies, vote on who belongs, see its budget."""


@node_app.command()
def init(
    node: Annotated[Path, typer.Argument(help="The folder to make the node in.")],
    name: Annotated[str, typer.Option(help="The institution's name in the federation: a-z, 0-9 and '-'.")],
    dataset: Annotated[str, typer.Option(help="The name that the privacy budget is kept under.")],
    data: Annotated[Path | None, typer.Option(help="The table: a CSV or Parquet file.")] = None,
    sql: Annotated[str | None, typer.Option(help="Or a database, SQLite or PostgreSQL, without a password.")] = None,
    query: Annotated[str | None, typer.Option(help="With --sql: one SELECT.")] = None,
    omop: Annotated[str | None, typer.Option(help="Or an OMOP database, without a password.")] = None,
    cohort_view: Annotated[str | None, typer.Option(help="With --omop: a view with one row for each person.")] = None,
    password_env: Annotated[str | None, typer.Option(help="The environment variable with the password.")] = None,
    epsilon_cap: Annotated[float, typer.Option(help="The most epsilon that the data set may ever spend.")] = 10.0,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make keys and a draft of node.toml from a first look at the data. Nothing is sent."""
    with command(as_json) as output:
        from causaldao.client.setup import begin

        source = _source(data, sql, query, omop, cohort_view, password_env)
        begun = begin(node, name, dataset, source, epsilon_cap)
        _confirm(f"Write {node / 'node.toml'} with {len(begun.offered)} variables?", yes)
        keys = begun.write()
        described = {
            "folder": str(node), "name": name, "dataset": dataset, "keys": keys,
            "offered": [found.column for found in begun.offered], "left_out": [f.column for f in begun.left_out],
        }  # fmt: skip
        text = [
            f"{node}: keys and node.toml written, nothing was sent",
            f"  {len(begun.offered)} columns offered, {len(begun.left_out)} left out: read node.toml, fill in units",
            f"  next: causaldao node join {node} TOKEN",
        ]
        output.emit(described, "\n".join(text))


@node_app.command()
def join(
    node: Folder,
    token: Annotated[str, typer.Argument(help="The token that the federation's operator gave you.")],
    as_json: Json = False,
) -> None:
    """Send the public keys and the variable dictionary to the federation of the token, and pin its coordinator."""
    with command(as_json) as output:
        from causaldao.client import dictionary
        from causaldao.client.config import NodeConfig
        from causaldao.client.enrolment import join, make_keys
        from causaldao.enrolment import Token
        from causaldao.signing import SigningKey, VerifyKey

        config = NodeConfig.load(node, joined=False)
        make_keys(node)
        invited = Token.from_text(token).federation
        # A node that has joined keeps its dictionary: joining another federation is refused below.
        offered = dictionary.write(node, "" if config.federation else invited)
        joined = join(node, token, datetime.now(UTC), name=config.name)
        own = SigningKey.load(dictionary.key_path(node)).public.id
        pinned = VerifyKey.from_text(joined["coordinator"])[1].id
        data = {**joined, "key": own, "variables": [variable.name for variable in offered.variables]}
        text = [
            f"{config.name} asked to join {joined['federation']}; it told the names, kinds, units and levels of "
            f"{len(offered.variables)} variables",
            f"  your key is {own}, the coordinator's {pinned}: compare both by telephone with the operator",
            f"  next: causaldao node start {node}",
        ]
        output.emit(data, "\n".join(text))


@node_app.command()
def start(
    node: Folder,
    metrics_port: Annotated[int, typer.Option(help="Serve metrics on this port of the loopback; 0: none.")] = 0,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    as_json: Json = False,
) -> None:
    """Run the node until it is told to stop. It answers the studies that you approved, and no other."""
    with command(as_json) as output:
        from causaldao.client.service import start
        from causaldao.logs import configure

        configure(log_format)
        start(node, metrics_port=metrics_port, log_format=log_format)
        output.emit({"stopped": True})


@node_app.command()
def status(node: Folder, as_json: Json = False) -> None:
    """Whether the node has joined, is admitted and is running, and what you decided."""
    with command(as_json) as output:
        from causaldao.client.overview import status

        data = status(node)
        output.emit(data, lambda: _status_text(data, node))


@node_app.command()
def dictionary(node: Folder, as_json: Json = False) -> None:
    """What others are told about your variables; once the node has joined, it is signed anew."""
    with command(as_json) as output:
        from causaldao.client import dictionary
        from causaldao.client.config import NodeConfig

        config = NodeConfig.load(node, joined=False)
        offered = dictionary.write(node) if config.federation else dictionary.site(config)
        data = {
            "member": config.name, "federation": config.federation, "signed": bool(config.federation),
            "variables": [variable.to_json() for variable in offered.variables],
        }  # fmt: skip
        output.emit(data, lambda: _dictionary_text(data))


@node_app.command()
def studies(node: Folder, as_json: Json = False) -> None:
    """The studies that the coordinator offers, and what you decided about each."""
    with command(as_json) as output:
        from causaldao.client.config import NodeConfig
        from causaldao.client.enrolment import studies
        from causaldao.client.overview import decision
        from causaldao.enrolment import visible

        config = NodeConfig.load(node)
        data = [
            {"hash": s["hash"], "name": s["name"], "decision": decision(config, node, s["hash"])}
            for s in studies(node, datetime.now(UTC))
        ]
        lines = [f"{study['decision']:<9} {study['hash'][:12]}  {visible(study['name'])}" for study in data]
        output.emit({"studies": data}, "\n".join(lines) or "no study is offered")


@node_app.command()
def approve(node: Folder, study: Chosen, by: By = "", yes: Yes = False, as_json: Json = False) -> None:
    """Read a study with what it would release and cost, and approve it. A running node knows at once."""
    with command(as_json) as output:
        from causaldao.client import approvals
        from causaldao.client.config import NodeConfig
        from causaldao.client.overview import review

        config = NodeConfig.load(node, joined=False)
        chosen = _chosen(node, study)
        data = review(config, node, chosen)
        if not as_json:
            sys.stderr.write(_review_text(data) + "\n")
        _confirm("Approve it?", yes)
        approvals.approve(node, chosen, datetime.now(UTC), by)
        output.emit({**data, "decision": approvals.APPROVED, "by": by}, f"approved {chosen.name} ({chosen.hash[:12]})")


@node_app.command()
def decline(node: Folder, study: Chosen, by: By = "", as_json: Json = False) -> None:
    """Say no to a study, so that its operator need not wait. Approving it later is possible."""
    with command(as_json) as output:
        from causaldao.client import approvals
        from causaldao.client.config import NodeConfig

        NodeConfig.load(node, joined=False)
        chosen = _chosen(node, study)
        approvals.decline(node, chosen, datetime.now(UTC), by)
        data = {"study": chosen.name, "hash": chosen.hash, "decision": approvals.DECLINED, "by": by}
        output.emit(data, f"declined {chosen.name} ({chosen.hash[:12]})")


@node_app.command()
def withdraw(
    node: Folder,
    study: Annotated[str, typer.Argument(help="A study file, or the name or hash of a study you decided on.")],
    as_json: Json = False,
) -> None:
    """Take back your decision: the node answers nothing more in the study. What was released stays released."""
    with command(as_json) as output:
        from causaldao.client import approvals
        from causaldao.client.config import NodeConfig

        config = NodeConfig.load(node, joined=False)
        found = _decided(node, study)
        if found in config.approved:
            raise ConfigurationError(
                f"Study {found[:12]} stands in approved of node.toml: take it out there, and restart the node."
            )
        approvals.withdraw(node, found)
        output.emit({"hash": found, "decision": "pending"}, f"withdrawn: {found[:12]}")


@node_app.command()
def motions(node: Folder, as_json: Json = False) -> None:
    """What the members are asked to vote on: who is admitted or revoked, how many may lie, edits of graphs."""
    with command(as_json) as output:
        from causaldao.client.votes import motions

        found = motions(node, datetime.now(UTC))
        output.emit(
            {"motions": [vars(one) for one in found]}, "\n".join(map(_motion_text, found)) or "no motion is open"
        )


@node_app.command()
def vote(
    node: Folder,
    motion: Annotated[str, typer.Argument(help="The motion's id, or its first digits (8 or more).")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Read a motion, and vote for it with this member's key. To vote against it, do nothing: silence is no vote."""
    with command(as_json) as output:
        from causaldao.client import votes

        now = datetime.now(UTC)
        chosen = votes.chosen(votes.motions(node, now), motion)
        if not as_json:
            sys.stderr.write(_motion_text(chosen) + "\n")
        _confirm("Vote for it?", yes)
        told = votes.vote(node, chosen, now)
        votes_now = f"{len(told['votes'])} of {chosen.needed} votes"
        text = f"voted for motion {chosen.id[:12]}: it has {votes_now} and is {told['state']}"
        output.emit({**vars(chosen), "state": told["state"], "votes": told["votes"]}, text)


@node_app.command("propose-edit")
def propose_edit(
    node: Folder,
    study: Annotated[
        str, typer.Argument(help="The name or hash of a study you decided on, its file, or its whole hash.")
    ],
    edge: Edge,
    change: Change,
    reason: Annotated[str, typer.Option(help="Why, in a sentence or two; it stands on the ledger.")],
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Propose to add, remove or reverse one edge of a study's adopted graph. The members vote on it; you do so with it.

    An edge is named as it is now: reverse A B makes B -> A of A -> B (or of A - B); add A B makes A -> B.
    """
    with command(as_json) as output:
        from causaldao.client import edits, votes
        from causaldao.enrolment import visible

        now, wanted = datetime.now(UTC), study if _HASH.fullmatch(study) else _decided(node, study)
        graph = edits.look(node, wanted, now)
        body, step = votes.edit(node, graph, edge, change, reason)
        words = visible(graph.words(step), _LONGEST)
        if not as_json:
            sys.stderr.write(f"{change} {' -> '.join(edge)} in study {graph.study.name} ({wanted[:12]})\n  {words}\n")
        _confirm("Propose it, and vote for it?", yes)
        told = votes.propose(node, body, now)
        text = (
            f"proposed: motion {told['motion'][:12]} has the votes of {', '.join(told['votes'])} and is "
            f"{told['state']}\n  the other owners run: causaldao node vote DIR {told['motion'][:12]}"
        )
        output.emit({**told, "edit": body, "change": words, "also": list(step.also)}, text)


@node_app.command()
def rotate(node: Folder, yes: Yes = False, as_json: Json = False) -> None:
    """Change this member's signing and witness key. The members vote on it; once they have, run it again and restart.

    A study that was proposed before knows the old key, and hears this node no more: let it end first.
    """
    with command(as_json) as output:
        from causaldao.client.rotation import rotate

        _confirm("Make new keys, and take them up as soon as the members agree?", yes)
        motion = rotate(node, datetime.now(UTC))
        waiting = (
            f"motion {motion[:12]}: the members vote on the new keys\n  when they have: causaldao node rotate {node}"
        )
        output.emit({"motion": motion, "changed": not motion}, waiting if motion else "the new keys are in place")


@node_app.command("dry-run")
def dry_run(
    node: Folder,
    study: Annotated[Path, typer.Option(help="The study file (TOML).")],
    as_json: Json = False,
) -> None:
    """Check data and budget against a study, all faults at once. Nothing is released, spent or sent."""
    with command(as_json) as output:
        from causaldao.budget import plan
        from causaldao.client.config import NodeConfig
        from causaldao.client.fit import check_study, declaration
        from causaldao.client.overview import decision

        config = NodeConfig.load(node, joined=False)
        chosen = _from_file(study)
        warnings = check_study(config, node, chosen)
        planned = plan(chosen)
        data = {
            "study": chosen.name, "hash": chosen.hash, "approved": decision(config, node, chosen.hash) == "approved",
            "warnings": list(warnings), "declares": declaration(config, chosen).words(chosen),
            "would_spend": {
                "epsilon": planned.epsilon, "delta": planned.delta, "releases": [vars(s) for s in planned.spends],
            },
        }  # fmt: skip
        output.emit(data, lambda: _dry_run_text(data, node, study))


@node_app.command()
def budget(node: Folder, as_json: Json = False) -> None:
    """What the node's data set has spent, by study and in all, against its lifetime cap."""
    with command(as_json) as output:
        from causaldao.client.config import NodeConfig
        from causaldao.client.overview import meter

        data = meter(NodeConfig.load(node, joined=False), node)
        output.emit(data, lambda: _meter_text(data))


def _source(
    data: Path | None, sql: str | None, query: str | None, omop: str | None, view: str | None, password_env: str | None
) -> dict[str, Any]:
    """The [source] table that the options describe."""
    if [data, sql, omop].count(None) != 2:
        raise MisuseError("Give one source: --data FILE, --sql URL with --query, or --omop URL with --cohort-view.")
    if (sql is None) != (query is None) or (omop is None) != (view is None):
        raise MisuseError("--sql goes with --query, and --omop with --cohort-view.")
    given = {
        "path": None if data is None else str(data), "url": sql or omop, "query": query, "cohort_view": view,
        "password_env": password_env,
    }  # fmt: skip
    return {key: value for key, value in given.items() if value is not None}


def _confirm(question: str, yes: bool) -> None:
    """Return if a person, or a script with --yes, agrees."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("Nobody is there to ask: run it at a terminal, or give --yes if a script may decide.")
    if not typer.confirm(question, default=False, err=True):
        raise RefusedError("You said no: nothing was written.")


def _from_file(path: Path) -> Study:
    from causaldao.client.config import read_text
    from causaldao.study import Study

    return Study.from_toml(read_text(path), path.name)


def _chosen(node: Path, text: str) -> Study:
    """The study that a person means: a file, or one that the coordinator offers."""
    if Path(text).suffix == ".toml" or Path(text).is_file():
        return _from_file(Path(text))
    from causaldao.client.enrolment import studies
    from causaldao.study import Study

    found = _one([(study["hash"], study["name"], study) for study in studies(node, datetime.now(UTC))], text)
    study = Study.from_mapping(found["document"], found["name"])
    if study.hash != found["hash"]:
        raise IdentityError(
            f"The coordinator offers study {found['hash'][:12]}, but what it sent has hash {study.hash[:12]}: it is "
            "not what was announced, or this version of causaldao is another one. Nothing was decided."
        )
    return study


def _decided(node: Path, text: str) -> str:
    """The hash of a study that was decided on, by its file, its name or its hash."""
    from causaldao.client.overview import status

    if Path(text).suffix == ".toml" or Path(text).is_file():
        return _from_file(Path(text)).hash
    return str(_one([(study["hash"], study["name"], study) for study in status(node)["studies"]], text)["hash"])


def _one(studies: list[tuple[str, str, dict[str, Any]]], text: str) -> dict[str, Any]:
    """The one study of this name, or whose hash begins so."""
    long = len(text) >= _SHORTEST
    found = [study for digest, name, study in studies if name == text or (long and digest.startswith(text))]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{name} ({digest[:12]})" for digest, name, _ in studies) or "none"
    if found:
        raise MisuseError(f"{text!r} is the name of {len(found)} studies: give the hash of one of {known}.")
    raise MisuseError(f"There is no study {text!r}; there are: {known}. Or give the path of a study file.")


def _review_text(data: dict[str, Any]) -> str:
    from causaldao.enrolment import visible

    life = data["lifetime"]
    lines = [
        f"study {data['study']} ({data['hash']})",
        f"  question:  {data['question']}",
        f"  purpose:   {data['purpose']}",
        f"  retention: {data['retention']}",
        f"  variables: {', '.join(variable['name'] for variable in data['variables'])}",
        f"  released to the federation {data['federation'] or '(none joined yet)'}, its coordinator "
        f"{data['coordinator'] or '(unknown)'} and all its members, however many, and kept on the ledger:",
        *(f"    {r['what']}: epsilon {r['epsilon']:.4f} at delta {r['delta']:g}" for r in data["releases"]),
        f"  all of it together: epsilon {data['epsilon']:.4f} at delta {data['delta']:g}",
        f"  {life['dataset']} afterwards: epsilon {life['after']:.4f} of {life['epsilon']:g} at delta "
        f"{life['delta']:g}",
    ]
    lines += [f"  told to all of them by the approval: {words}" for words in data["declares"]]
    if not life["fits"]:
        lines.append("  PAST ITS CAP: the node would refuse the study, approved or not")
    if data["simulation"]:
        lines.append("  the study is a simulation: noise is seeded on a node whose own file says so")
    if data["mismatches"]:
        lines.append("  node.toml does not fit it; until it does, the node refuses the study, approved or not:")
        lines += [f"    - {mismatch}" for mismatch in data["mismatches"]]
    # What a study says is another's text: it must not draw a screen of its own where a person decides.
    return "\n".join(visible(line, _LONGEST) for line in lines)


def _motion_text(motion: Motion) -> str:
    voted = f"; so far: {', '.join(motion.votes)}" if motion.votes else ""
    change = f"  {motion.change}\n" if motion.change else ""
    return (
        f"motion {motion.id[:12]}, put {motion.opened}:\n  {motion.words}\n{change}"
        f"  it needs {motion.needed} of {motion.members} votes{voted}"
    )


def _status_text(data: dict[str, Any], node: Path) -> str:
    process = data["process"]
    joined = f"joined {data['federation']} (coordinator {data['coordinator']})"
    until = data["certificate_until"]
    lines = [
        f"{data['name']}: {joined if data['joined'] else f'not joined: causaldao node join {node} TOKEN'}",
        f"  certificate: {f'until {until}' if until else 'none yet; the operator must admit this node'}",
        f"  process: {process['state'] if process['running'] else f'not running: causaldao node start {node}'}",
    ]
    if process["error"]:
        lines.append(f"  last error: {process['error']}")
    if data["witness"] is not None:
        lines += _witness_lines(data["witness"], node)
    lines += [f"  {study['decision']:<9} {study['hash'][:12]}  {study['name']}" for study in data["studies"]]
    return "\n".join(lines)


def _witness_lines(witness: dict[str, Any], node: Path) -> list[str]:
    """What the node saw of the ledger, and what its owner has to do."""
    missing, since = witness["without_receipt"], witness["oldest_without_receipt"]
    words = "all words have a receipt"
    if missing:
        oldest = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
        words = f"{missing} word{'s' if missing > 1 else ''} without a receipt since {oldest}"
    elif not witness["words"]:
        words = "nothing was said yet"
    if witness["status"] == "witnessing":
        return [f"  witness: {witness['size']} entries seen, {words}"]
    return [
        f"  witness: {witness['status'].upper()}, it cosigns nothing and the node answers no study; {words}",
        f"    {witness['reason']}",
        f"    {_REMEDIES[witness['status']].format(node=node)}",
    ]


def _dictionary_text(data: dict[str, Any]) -> str:
    lines = []
    for variable in data["variables"]:
        levels = ", ".join(f"{word} = {code:g}" for word, code in variable["levels"].items())
        column = f"  (column {variable['column']!r})" if "column" in variable else ""
        lines.append(
            f"{variable['name']}: {variable['kind']}"
            + (f", in {variable['unit']}" if variable["unit"] else "")
            + (f", {levels}" if levels else "")
            + column
        )
    signed = "signed into dictionary.dsse" if data["signed"] else "not signed: the node has not joined"
    return "\n".join([*(lines or ["nothing is mapped in node.toml, so nothing is told"]), signed])


def _dry_run_text(data: dict[str, Any], node: Path, study: Path) -> str:
    lines = [f"{data['study']} ({data['hash'][:12]}): the data fit, nothing was released"]
    lines += [f"  {warning}" for warning in data["warnings"]]
    lines += [f"  it would declare: {words}" for words in data["declares"]]
    spend = data["would_spend"]
    lines.append(f"  it would spend epsilon {spend['epsilon']:.4f} at delta {spend['delta']:g}")
    if not data["approved"]:
        lines.append(f"  not approved: to take part, run causaldao node approve {node} {study}")
    return "\n".join(lines)


def _meter_text(data: dict[str, Any]) -> str:
    cap = data["epsilon"]
    lines = [f"{data['dataset']}: epsilon {data['spent']:.4f} of {cap:g} at delta {data['delta']:g}"]
    if data["spent"]:
        lines.append(f"  {_bar(data['spent'], cap)} in all ({data['spent'] / cap:.0%})")
    lines += [
        f"  {_bar(study['epsilon'], cap)} {study['epsilon']:.4f}  {study['name'] or 'study'} ({study['study'][:12]})"
        for study in data["studies"]
    ]
    return "\n".join([*lines, *(["  together they spend less than their sum"] if len(data["studies"]) > 1 else [])])


def _bar(value: float, cap: float) -> str:
    filled = min(_BAR, round(_BAR * value / cap))
    return "[" + "#" * filled + "." * (_BAR - filled) + "]"
