"""The front door: `causaldao …`. It mounts each package's own commands, and loads only the one that is asked for.

The one file of this package that looks up to the floors above it; it does so by name, when a command is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

import click
import typer
from typer.core import TyperGroup
from typer.main import get_command

from causaldao import __version__
from causaldao.console import Output
from causaldao.errors import MisuseError

# name: (module, attribute, one line of help)
COMMANDS = {
    "simulate": (
        "causaldao.simulations.cli",
        "simulate_app",
        "Run a whole federation on this machine, from a study file.",
    ),
    "bench": ("causaldao.simulations.cli", "bench_app", "Measure speed and memory, beside a peer in the same run."),
    "coordinator": (
        "causaldao.server.cli",
        "coordinator_app",
        "What an operator does: invite and admit members, run the coordinator.",
    ),
    "example": (
        "causaldao.simulations.cli",
        "example_app",
        "Write a study and hospitals' tables to try a federation with.",
    ),
    "study": ("causaldao.server.cli", "study_app", "Check, propose, run and resume a study."),
    "node": (
        "causaldao.client.cli",
        "node_app",
        "What an institution does: join, approve studies, run its node, see its budget.",
    ),
    "doctor": ("causaldao.doctor", "doctor_app", "What stands in the way of running here, and what to do about it."),
    "ledger": ("causaldao.ledger.cli", "app", "Verify, show, export and watch a ledger; fetch and check receipts."),
    "audit": ("causaldao.cli", "audit_app", "Recompute every decision in a bundle; name what does not follow."),
    "discover": ("causaldao.client.discovery", "discover_app", "Find a causal graph in one table."),
    "identify": ("causaldao.models.cli", "identify_app", "Say whether a graph settles an effect, and by what formula."),
    "effect": ("causaldao.client.effects", "effect_app", "Estimate the average effect of a treatment."),
    "do": ("causaldao.client.questions", "do_app", "Ask a run's model what happens under an intervention."),
    "counterfactual": ("causaldao.client.questions", "counterfactual_app", "What would have happened to one record."),
}


class _Lazy(TyperGroup):
    """Commands by name; the help of the whole lists them without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = get_command(getattr(import_module(module), attribute))
        command.name = cmd_name
        return command

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])
        self.format_options(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options"):
            formatter.write_dl([("--version", "Show the version."), ("--help", "Show this message.")])


# A traceback must never show local variables: on a node they are rows.
app = typer.Typer(
    cls=_Lazy, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"causaldao {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(version: bool = typer.Option(False, "--version", callback=_version, is_eager=True)) -> None:
    """Institutions that may not share rows learn together what causes what.

    Every command takes --json. Exit status: 0 done, 1 a finding, 2 misuse, others in docs/errors.
    """


def main() -> NoReturn:
    """Run the command line; with --json a misuse is an envelope too."""
    try:
        status = app(standalone_mode=False)
    except click.ClickException as error:
        if "--json" in sys.argv:
            Output(as_json=True).fail(MisuseError(error.format_message()))
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
