"""`causaldao discover`: a graph of one table, how sure each link is, why it is there, and in which form it is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.client.inputs import read_json, read_table, read_text, seeded, write
from causaldao.console import command
from causaldao.errors import ConfigurationError, MisuseError
from causaldao.models.cli import PAG

if TYPE_CHECKING:
    import pandas as pd

    from causaldao.models.discovery.bootstrap import Bootstrap
    from causaldao.models.discovery.evidence import Evidence
    from causaldao.models.discovery.explain import Explanation
    from causaldao.models.discovery.found import Discovery
    from causaldao.models.graph import Edge
    from causaldao.models.knowledge import Knowledge
    from causaldao.models.rule_checks import RuleCheck
    from causaldao.models.rules import CausalRuleSet

discover_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_MAX_DRAWS = 100_000

Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]


@discover_app.command()
def discover(
    data: Annotated[Path, typer.Argument(help="A CSV or Parquet file of numbers.")],
    method: Annotated[
        str,
        typer.Option(
            help="boss, ges or pc; fci or rfci where causes may be unmeasured; moment-fit for noisy evidence; "
            "notears or dagma to compare with."
        ),
    ] = "boss",
    knowledge: Annotated[Path | None, typer.Option(help="A TOML file: required, forbidden, tiers.")] = None,
    alpha: Annotated[float, typer.Option(help="Test level of pc, fci and rfci.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the restarts of boss, and of the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the graph here: .json (for effect --graph), .graphml, .dot, .svg, .html.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="json, graphml, dot, svg or html, whatever the suffix; without --out to stdout.")
    ] = None,
    features: Annotated[
        str,
        typer.Option(help="Evidence of: identity (numbers), one-hot or fourier (levels, curves), or table (counts)."),
    ] = "identity",
    bootstrap: Annotated[
        int | None, typer.Option(help="Draw the rows anew so many times: each link's probability.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why each link is there, and why others are not.")
    ] = False,
    rules: Annotated[Path | None, typer.Option(help="A JSON file of causal rules to check one by one.")] = None,
    as_json: Json = False,
) -> None:
    """Find a causal graph in one table. The rows stay in this process."""
    with command(as_json) as output:
        from causaldao.models.discovery import search
        from causaldao.models.discovery.frames import evidence_of
        from causaldao.models.knowledge import NONE, Knowledge
        from causaldao.pictures.formats import format_of

        written = format_of("" if out is None else out.suffix, format)
        if format is not None and out is None and as_json:
            raise MisuseError(
                f"--json prints one envelope, and --format {format} another text. Give --out FILE for it."
            )
        known = NONE if knowledge is None else Knowledge.from_toml(read_text(knowledge))
        declared = None if rules is None else _rules(rules)
        frame = read_table(data, numbers=features == "identity")
        evidence = evidence_of(frame, features)
        options = _method_options(method, {"alpha": alpha}, seed)
        found = search(evidence, method, known, **options)
        finding = Finding(
            found, method,
            None if bootstrap is None else _probabilities(frame, features, method, known, bootstrap, seed, options),
            _explanations(evidence, found, known, method, alpha) if explain else None,
            None if declared is None else _checks(declared, evidence, found),
        )  # fmt: skip
        text = finding.text()
        if out is not None:
            write(out, finding.document(written, data.name))
        elif format is not None:
            text = finding.document(written, data.name)
        output.emit(finding.to_json(), text)


@dataclass(frozen=True)
class Finding:
    """What `causaldao discover` found, and in what forms it is told; what was not asked for is None."""

    found: Discovery
    method: str
    probabilities: Bootstrap | None
    explanations: list[Explanation] | None
    checks: tuple[RuleCheck, ...] | None

    def graph(self) -> dict[str, Any]:
        """The graph as `--out` writes it in JSON, without what is told of its links."""
        return self.found.graph.to_json() | ({"kind": PAG} if self.method in ("fci", "rfci") else {})

    def extras(self) -> dict[str, Any]:
        """What else was asked for, under stable keys: probabilities, explanations, rules."""
        told: dict[str, Any] = {"notes": list(self.found.notes)} if self.found.notes else {}
        if self.probabilities is not None:
            told["probabilities"] = self.probabilities.to_json()
        if self.explanations is not None:
            told["explanations"] = [explanation.to_json() for explanation in self.explanations]
        if self.checks is not None:
            told["rules"] = [check.to_json() for check in self.checks]
        return told

    def to_json(self) -> dict[str, Any]:
        return {"method": self.method, "graph": self.graph(), **self.extras()}

    def text(self) -> str:
        """For people: a line for each edge, then the checks of rules, then what is told of each pair."""
        lines = [f"{edge}{self._share(edge)}" for edge in sorted(self.found.graph.edges)] or ["no edges"]
        if self.probabilities is not None:
            lines.append(f"(the share of {self.probabilities.draws} draws of the rows in which the two are linked)")
        for title, told in (("Rules", self.checks), ("Why", self.explanations)):
            if told is not None:
                lines += ["", f"{title}:", *(f"  {each.text}" for each in told)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.found.notes)])

    def document(self, format: str, source: str) -> str:
        """The text of a file in one of `formats.FORMATS`; ``source`` names the table in a title."""
        from causaldao.pictures import formats, page, svg

        graph = self.found.graph
        shares = self._shares()
        if format == "json":
            return json.dumps(self.graph() | self.extras(), indent=1, allow_nan=False)
        if format == "svg":
            return svg.draw(graph, [], shares=shares)
        if format == "html":
            draws = "" if self.probabilities is None else f", probabilities of {self.probabilities.draws} draws"
            return page.page(
                graph,
                title=f"The causal graph of {source}",
                subtitle=f"{len(graph.nodes)} variables, by {self.method}{draws}",
                probabilities=self.probabilities,
                explanations=self.explanations or [],
            )
        return {"dot": formats.dot, "graphml": formats.graphml}[format](graph, shares)

    def _shares(self) -> dict[frozenset[str], float]:
        if self.probabilities is None:
            return {}
        return {frozenset(pair): self.probabilities.pair(*pair).adjacent for pair in self.found.graph.skeleton()}

    def _share(self, edge: Edge) -> str:
        share = self._shares().get(frozenset((edge.a, edge.b)))
        return "" if share is None else f"  {share:.2f}"


def _method_options(method: str, told: dict[str, Any], seed: int) -> dict[str, Any]:
    """Those of the options that the method has, and a generator if it takes one."""
    from causaldao.models.discovery import METHODS

    has = signature(METHODS[method]).parameters if method in METHODS else {}
    given = {name: value for name, value in told.items() if name in has}
    return given | ({"generator": seeded(seed)} if "generator" in has else {})


def _probabilities(
    frame: pd.DataFrame, features: str, method: str, known: Knowledge, draws: int, seed: int, options: dict[str, Any]
) -> Bootstrap:
    from causaldao.models.discovery import METHODS
    from causaldao.models.discovery.bootstrap import bootstrap, of_rows
    from causaldao.models.discovery.frames import evidence_of

    if not 1 <= draws <= _MAX_DRAWS:
        raise MisuseError(f"--bootstrap {draws} must lie in [1, {_MAX_DRAWS}]: 100 draws are usual.")
    return bootstrap(
        of_rows(frame, lambda rows: evidence_of(rows, features)), METHODS[method], known, draws=draws, kind="rows",
        generator=seeded(seed), progress=_progress,
        **{name: value for name, value in options.items() if name != "generator"},
    )  # fmt: skip


def _progress(done: int, draws: int) -> None:
    """Every tenth of the draws, on stderr."""
    if draws >= 10 and done % (draws // 10) == 0:
        typer.echo(f"  {done} of {draws} draws", err=True)


def _explanations(
    evidence: Evidence, found: Discovery, known: Knowledge, method: str, alpha: float
) -> list[Explanation]:
    from causaldao.models.discovery import METHODS
    from causaldao.models.discovery.evidence import Evidence
    from causaldao.models.discovery.explain import explain
    from causaldao.models.discovery.score import PENALTY

    if not isinstance(evidence, Evidence):
        raise MisuseError("--explain tests second moments, and these features give none: use --features identity.")
    scored = "penalty" in signature(METHODS[method]).parameters
    return explain(evidence, found, known, alpha=alpha, penalty=PENALTY if scored else None)


def _rules(path: Path) -> CausalRuleSet:
    from causaldao.models.rules import CausalRuleSet

    value = read_json(path)
    if not isinstance(value, list):
        raise ConfigurationError(f"{path} holds no list of rules: expected [{{'cause': name, 'effect': name, ...}}].")
    return CausalRuleSet.from_json(value)


def _checks(rules: CausalRuleSet, evidence: Evidence, found: Discovery) -> tuple[RuleCheck, ...]:
    from causaldao.models.discovery.evidence import Evidence
    from causaldao.models.rule_checks import check_rules

    if not isinstance(evidence, Evidence):
        raise MisuseError("--rules needs second moments, and these features give none: use --features identity.")
    return check_rules(rules, evidence, found.graph)
