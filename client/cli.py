"""`causaldao node`: what an institution does. `dry-run` releases nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from causaldao.console import command

node_app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
Folder = Annotated[Path, typer.Argument(help="The node's folder, with its node.toml.")]


@node_app.callback()
def _node() -> None:
    """What an institution does: try a study on its own data, see its budget."""


@node_app.command("dry-run")
def dry_run(
    node: Folder,
    study: Annotated[Path, typer.Option(help="The study file (TOML).")],
    as_json: Json = False,
) -> None:
    """Check data and budget against a study, all faults at once. Nothing is released, spent or sent."""
    with command(as_json) as output:
        from causaldao.budget import plan
        from causaldao.client.node import check_study
        from causaldao.study import Study

        config = _config(node)
        chosen = Study.from_toml(_read(study), study.name)
        warnings = check_study(config, node, chosen)
        planned = plan(chosen)
        data = {
            "study": chosen.name, "hash": chosen.hash, "approved": chosen.hash in config.approved,
            "warnings": list(warnings),
            "would_spend": {
                "epsilon": planned.epsilon, "delta": planned.delta, "releases": [vars(s) for s in planned.spends],
            },
        }  # fmt: skip
        output.emit(data, lambda: _report(data))


@node_app.command()
def budget(node: Folder, as_json: Json = False) -> None:
    """What the node's data set has spent over all studies, against its lifetime cap."""
    with command(as_json) as output:
        from causaldao.client.privacy.journal import Journal

        config = _config(node)
        path = node / "journal.db"
        spent = Journal.open(path).spent(config.dataset, config.lifetime.delta) if path.exists() else 0.0
        data = {"dataset": config.dataset, "spent": spent, **config.lifetime.model_dump()}
        output.emit(
            data,
            f"{config.dataset}: epsilon {spent:.4f} of {config.lifetime.epsilon:g} at delta {config.lifetime.delta:g}",
        )


def _config(folder: Path) -> Any:
    from causaldao.client.node import NodeConfig
    from causaldao.errors import ConfigurationError

    try:
        value = tomllib.loads(_read(folder / "node.toml"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{folder / 'node.toml'} is not valid TOML: {error}.") from error
    return NodeConfig.parse(value, "node.toml")


def _read(path: Path) -> str:
    from causaldao.errors import ConfigurationError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _report(data: dict[str, Any]) -> str:
    lines = [f"{data['study']} ({data['hash'][:12]}): the data fit, nothing was released"]
    lines += [f"  {warning}" for warning in data["warnings"]]
    spend = data["would_spend"]
    lines.append(f"  it would spend epsilon {spend['epsilon']:.4f} at delta {spend['delta']:g}")
    if not data["approved"]:
        lines.append(f"  not approved: to take part, add {data['hash']!r} to approved in node.toml")
    return "\n".join(lines)
