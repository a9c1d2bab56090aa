"""`causaldao study`: what an operator does with a study before anyone is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causaldao.console import command

study_app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=True)


@study_app.callback()
def _study() -> None:
    """Check a study: faults, privacy plan, what its members can bear."""


@study_app.command()
def check(
    study: Annotated[Path, typer.Argument(help="A study file (TOML).")],
    members: Annotated[int, typer.Option(help="How many members you expect; 0 leaves their number open.")] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Validate a study, and say what each member would spend on it."""
    with command(as_json) as output:
        from causaldao.aggregation.rules import RULES, require
        from causaldao.budget import plan
        from causaldao.decisions import answers_needed
        from causaldao.errors import ConfigurationError
        from causaldao.study import Study

        try:
            text = study.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"The study {study} cannot be read: {error}.") from error
        checked = Study.from_toml(text, study.name)
        rules = sorted({checked.aggregation.rule, checked.aggregation.pool})
        needed = max(RULES[rule].least(checked.consensus.faulty) for rule in rules if rule in RULES)
        for rule in rules:
            require(rule, members or needed, checked.consensus.faulty)
        planned = plan(checked)
        heard = answers_needed(checked, members or needed)
        data = {
            "name": checked.name, "hash": checked.hash, "epsilon": planned.epsilon, "delta": planned.delta,
            "releases": [vars(spend) for spend in planned.spends], "members_needed": needed,
            "must_answer": heard,
        }  # fmt: skip
        output.emit(data, lambda: _text(data))


def _text(data: dict[str, object]) -> str:
    return (
        f"{data['name']}: valid\n  hash {data['hash']}\n  each member spends at most epsilon {data['epsilon']:.4f} at "
        f"delta {data['delta']:g}\n  needs at least {data['members_needed']} members, "
        f"of whom {data['must_answer']} must answer each step"
    )
