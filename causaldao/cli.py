"""`causaldao audit`: recompute every decision in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from causaldao.console import command

audit_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@audit_app.command()
def audit(
    bundle: Annotated[Path, typer.Argument(help="The bundle file.")],
    policy: Annotated[Path, typer.Option(help="The keys you trust; get it by another way than the bundle.")],
    study: Annotated[
        str | None, typer.Option(help="Only this study: its name, or its hash.", metavar="NAME|HASH")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")] = False,
) -> None:
    """Verify BUNDLE, then recompute pool, proposal, ballots, adoption, effects and aggregates of each study in it.
    Exit status 1 if one does not follow.
    """
    with command(as_json) as output:
        from causaldao.audit import audit
        from causaldao.audit.edits import text as edited_text
        from causaldao.ledger.cli import verified

        report = verified(bundle, policy)
        result = audit(report, study)
        result.require()
        data = {
            "root": report.root, "size": report.size, "policy": report.policy_fingerprint, "checked": result.checked,
            "unchecked": result.unchecked, "edited": result.edited,
        }  # fmt: skip
        scope = "every decision that could be checked" if result.unchecked else "every decision"
        lines = [f"{scope} follows from what was recorded ({report.size} entries, root {report.root[:16]})"]
        lines += [f"  recomputed: {what}" for what in result.checked]
        lines += [f"  NOT checked: {what}" for what in result.unchecked]
        lines += [f"  {line}" for told in result.edited for line in edited_text(told)]
        output.emit(data, "\n".join([*lines, f"  policy fingerprint {report.policy_fingerprint}"]))
