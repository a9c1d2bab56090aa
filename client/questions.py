"""Questions to one table or to a finished run: `causaldao discover`, `do`, `counterfactual`; `effects` has `effect`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.console import command
from causaldao.errors import ConfigurationError, DataError, MisuseError
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
    from causaldao.models.scm import NeuralSCM

discover_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
do_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
counterfactual_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_MAX_SAMPLES = 10_000_000
_MAX_DRAWS = 100_000

Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
Sets = Annotated[
    list[str], typer.Option("--set", help="NAME=VALUE, in the model's units (after a variable's transform).")
]


@discover_app.command()
def discover(
    data: Annotated[Path, typer.Argument(help="A CSV or Parquet file of numbers.")],
    method: Annotated[str, typer.Option(help="boss, ges or pc; fci or rfci where causes may be unmeasured.")] = "boss",
    knowledge: Annotated[Path | None, typer.Option(help="A TOML file: required, forbidden, tiers.")] = None,
    alpha: Annotated[float, typer.Option(help="Test level of pc, fci and rfci.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the restarts of boss, and of the bootstrap.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the graph here: .json (for effect --graph), .graphml, .dot, .svg, .html.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="json, graphml, dot, svg or html, whatever the suffix; without --out to stdout.")
    ] = None,
    features: Annotated[str, typer.Option(help="The feature map that the evidence is made by.")] = "identity",
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
        known = NONE if knowledge is None else Knowledge.from_toml(_text(knowledge))
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
            _write(out, finding.document(written, data.name))
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
        told: dict[str, Any] = {}
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
        return "\n".join(lines)

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
    import torch

    from causaldao.models.discovery import METHODS

    has = signature(METHODS[method]).parameters if method in METHODS else {}
    given = {name: value for name, value in told.items() if name in has}
    return given | ({"generator": torch.Generator().manual_seed(seed)} if "generator" in has else {})


def _probabilities(
    frame: pd.DataFrame, features: str, method: str, known: Knowledge, draws: int, seed: int, options: dict[str, Any]
) -> Bootstrap:
    import torch

    from causaldao.models.discovery import METHODS
    from causaldao.models.discovery.bootstrap import bootstrap, of_rows
    from causaldao.models.discovery.frames import evidence_of

    if not 1 <= draws <= _MAX_DRAWS:
        raise MisuseError(f"--bootstrap {draws} must lie in [1, {_MAX_DRAWS}]: 100 draws are usual.")
    return bootstrap(
        of_rows(frame, lambda rows: evidence_of(rows, features)), METHODS[method], known, draws=draws, kind="rows",
        generator=torch.Generator().manual_seed(seed), progress=_progress,
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

    if not isinstance(evidence, Evidence):
        raise MisuseError("--explain tests second moments, and these features give none: use --features identity.")
    penalty = signature(METHODS[method]).parameters.get("penalty")
    return explain(evidence, found, known, alpha=alpha, penalty=None if penalty is None else penalty.default)


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


@do_app.command("do")
def intervene(
    run: Run,
    assignments: Sets,
    target: Annotated[str, typer.Option(help="The variable whose distribution is asked for.")],
    samples: Annotated[int, typer.Option(help="Monte Carlo rows.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the rows.")] = 0,
    as_json: Json = False,
) -> None:
    """What the target would be, on average, if the given variables were set."""
    with command(as_json) as output:
        import torch

        model, chosen = _model(run), _assignments(assignments)
        if target not in model.names:
            raise MisuseError(f"There is no variable {target!r}; the model has {', '.join(model.names)}.")
        if not 2 <= samples <= _MAX_SAMPLES:
            raise MisuseError(f"samples = {samples} must lie in [2, {_MAX_SAMPLES}].")
        rows = model.sample(samples, chosen, torch.Generator().manual_seed(seed))
        values = rows[:, model.names.index(target)].sort().values
        low, high = float(values[int(0.05 * samples)]), float(values[min(int(0.95 * samples), samples - 1)])
        mean, error = float(values.mean()), float(values.std()) / samples**0.5
        notes = _intervention_notes(model, chosen, [target])
        data = {
            "target": target, "mean": mean, "monte_carlo_error": error, "quantiles": {"0.05": low, "0.95": high},
            "notes": notes,
        }  # fmt: skip
        text = f"{target}: mean {mean:.4f} (Monte Carlo error {error:.4f}), 90 % of values in [{low:.4f}, {high:.4f}]"
        output.emit(data, "\n".join([text, *notes]))


@counterfactual_app.command()
def counterfactual(
    run: Run,
    row: Annotated[Path, typer.Argument(help="A JSON object: each variable's value, in the model's units.")],
    assignments: Sets,
    as_json: Json = False,
) -> None:
    """What this record would have been, had the given variables been set (abduction, action, prediction)."""
    with command(as_json) as output:
        import torch

        model, chosen = _model(run), _assignments(assignments)
        factual = _row(row, model.names)
        changed = model.counterfactual(torch.tensor([factual], dtype=torch.float64), chosen)[0].tolist()
        both = {
            name: {"factual": was, "counterfactual": would}
            for name, was, would in zip(model.names, factual, changed, strict=True)
        }
        notes = _intervention_notes(model, chosen, [])
        lines = [f"{name}: {value['factual']:.4f} -> {value['counterfactual']:.4f}" for name, value in both.items()]
        output.emit({"variables": both, "notes": notes}, "\n".join([*lines, *notes]))


def _intervention_notes(model: NeuralSCM, chosen: dict[str, float], targets: list[str]) -> list[str]:
    """Where an answer is empty or far-fetched: no path to the target, or a value outside the study's bounds."""
    reached = model.graph.descendants(list(chosen))
    notes = [
        f"note: the adopted graph has no causal path from {', '.join(sorted(chosen))} to {target}: nothing changes it."
        for target in targets
        if target not in reached
    ]
    for name, value in chosen.items():
        place = model.names.index(name)
        centre, half = float(model.centre[place]), float(model.half_range[place])
        if abs(value - centre) > half * (1 + 1e-9):
            notes.append(
                f"note: {name} = {value:g} lies outside the study's bounds [{centre - half:g}, {centre + half:g}]: the "
                "model extrapolates."
            )
    return notes


def read_table(path: Path, *, numbers: bool = True) -> pd.DataFrame:
    """A table; DataError names the columns that are no numbers, where all have to be."""
    from causaldao.client.data.sources import read

    frame = read(path)
    if not numbers:
        return frame
    wrong = [str(name) for name in frame.columns if frame[name].dtype.kind not in "iufb"]
    if wrong:
        raise DataError(f"The columns {wrong} of {path} are not numbers: drop them, or code them as 0 and 1.")
    return frame


def _model(run: Path) -> NeuralSCM:
    from causaldao.models.scm import NeuralSCM

    path = run / "model.safetensors"
    if not path.is_file():
        why = (
            "its study trained none (rounds = 0)"
            if (run / "result.json").is_file()
            else "it is not the folder of a run"
        )
        raise MisuseError(f"There is no model in {run}: {why}.")
    return NeuralSCM.load(path)


def _assignments(texts: list[str]) -> dict[str, float]:
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number):
            raise MisuseError(f"Expected --set NAME=NUMBER, a finite one, but got {text!r}.")
        if name in values:
            raise MisuseError(f"{name!r} is set twice.")
        values[name] = number
    return values


def _row(path: Path, names: tuple[str, ...]) -> list[float]:
    value = read_json(path)
    if not isinstance(value, dict) or set(value) != set(names):
        raise DataError(f"The record in {path} must be a JSON object with exactly the variables {', '.join(names)}.")
    wrong = [name for name in names if not _is_number(value[name])]
    if wrong:
        raise DataError(f"The values of {wrong} in {path} are not finite numbers.")
    return [float(value[name]) for name in names]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_json(path: Path) -> Any:
    """The content of a JSON file; ConfigurationError if it is none."""
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from error
