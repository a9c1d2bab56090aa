"""`causaldao effect`: of a finished run, as its study estimated it; or of one table, as a graph and a method say."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.client.inputs import columns_of, read_json
from causaldao.console import command, shown
from causaldao.errors import MisuseError
from causaldao.models.cli import read_graph

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from causaldao.models.effects import Effect
    from causaldao.models.estimation import TableEffect
    from causaldao.models.graph import CausalGraph
    from causaldao.models.refute import Refutation
    from causaldao.models.response import Coefficient

effect_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_LINEAR = "linear"  # least squares from second moments, which also serves a class of graphs


@effect_app.command()
def effect(
    source: Annotated[Path, typer.Argument(help="A CSV or Parquet file, or the folder of a run.")],
    treatment: Annotated[str, typer.Option(help="The variable that is set.")],
    outcome: Annotated[str, typer.Option(help="The variable that answers.")],
    graph: Annotated[
        Path | None, typer.Option(help="A graph (JSON, from discover --out or a run) that says what to adjust for.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="linear (also over a class of graphs), or auto, g-formula, ipw, aipw, plm, front-door, 2sls, "
            "mediation, plug-in. Left out: linear, or auto if the graph has two-headed edges."
        ),
    ] = "",
    estimand: Annotated[
        str, typer.Option(help="ate; att: among those treated; nde, nie: past the mediators, and through them.")
    ] = "",
    assume: Annotated[str, typer.Option(help="linear: allow instruments, which need it.")] = "",
    family: Annotated[str, typer.Option(help="Of the outcome: linear, binary or count.")] = "",
    mediator: Annotated[list[str] | None, typer.Option(help="Repeat it for several. Left out: all.")] = None,
    instrument: Annotated[str, typer.Option(help="Left out: all that share their conditions.")] = "",
    contrast: Annotated[str, typer.Option(help="FROM,TO: two values of the treatment.")] = "",
    degree: Annotated[int | None, typer.Option(help="2: squares and products of what is adjusted for, too.")] = None,
    trim: Annotated[float | None, typer.Option(help="Leave out rows with a score nearer to 0 or 1 than this.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of folds and refuters.")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="With --refute: an outcome that cannot be moved; repeat it for several.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="How the effect changes with this covariate; repeat it for several.")
    ] = None,
    dose: Annotated[str, typer.Option(help="D1,D2,…: the effect of each of these doses, of a treatment of many.")] = "",
    reference: Annotated[float | None, typer.Option(help="The dose that --dose compares with; else the mean.")] = None,
    refute: Annotated[bool, typer.Option("--refute", help="Ask what could be wrong with it.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say by what formula and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")] = False,
) -> None:
    """The average effect of a treatment, with its standard error and interval."""
    with command(as_json) as output:
        given: dict[str, Any] = {
            "estimand": estimand, "assume": assume, "family": family, "mediators": mediator, "instrument": instrument,
            "contrast": _contrast(contrast), "degree": degree, "trim": trim, "seed": seed,
        }  # fmt: skip
        shape = _Shape(tuple(by or ()), _numbers("--dose", dose) if dose else (), reference)
        options = {name: value for name, value in given.items() if value not in ("", None, [])}
        wants_rows = bool(options) or refute or explain or method not in ("", _LINEAR) or shape.asked
        _require_sense(source, graph, method, wants_rows, options)
        if control and not refute:
            raise MisuseError("--control goes with --refute.")
        if method == _LINEAR and graph is not None and not source.is_dir():
            _require_directed(read_graph(graph))
        shape.require_alone(method, refute or explain or bool(estimand or contrast or instrument or mediator))
        drawn = None if graph is None else read_graph(graph)
        if shape.asked and drawn is not None and not source.is_dir():
            found, notes, lines = shape.answer(source, drawn, treatment, outcome, options)
        elif source.is_dir():
            found = _run_effects(source, treatment, outcome)
            notes, lines = _effect_notes(found, source, drawn), [_effect_line(one) for one in found]
        elif drawn is not None and (wants_rows or (not method and drawn.bidirected)):
            found, notes, lines = _rows(source, drawn, treatment, outcome, method, options, control, refute, explain)
        else:
            found, empty = _table_effects(source, drawn, treatment, outcome)
            notes = [*_effect_notes(found, source, drawn), *empty]
            lines = [_effect_line(one) for one in found]
        output.emit({"effects": found, "notes": notes}, "\n".join([*lines, *notes]))


def _require_sense(source: Path, graph: Path | None, method: str, wants_rows: bool, options: dict[str, Any]) -> None:
    if source.is_dir():
        if graph is not None:
            raise MisuseError("A run has its own graph: leave out --graph, or give the table instead of the run.")
        if wants_rows or method:
            raise MisuseError(
                "A run's effects are as its study estimated them: give --method and the like with a table."
            )
    elif wants_rows:
        if method == _LINEAR:
            asked = ", ".join(sorted(options)) or "refute and explain"
            raise MisuseError(f"--method linear takes no other option ({asked}): leave --method out, or take auto.")
        if graph is None:
            raise MisuseError("What to compare follows from a graph: give --graph, as discover --out writes it.")


def _require_directed(graph: CausalGraph) -> None:
    if graph.bidirected:
        pairs = ", ".join(f"{a} <-> {b}" for a, b in sorted(graph.bidirected))
        raise MisuseError(
            f"--method linear takes no unmeasured causes, and the graph has {pairs}: leave --method out, or take auto."
        )


def _contrast(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    values = _numbers("--contrast", text)
    if len(values) != 2:
        raise MisuseError(f"Expected --contrast FROM,TO, two numbers, but got {text!r}.")
    return values[0], values[1]


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) for value in values):
        raise MisuseError(f"Expected finite numbers with commas between them after {option}, but got {text!r}.")
    return values


Answer = tuple[list[dict[str, Any]], list[str], list[str]]


@dataclass(frozen=True)
class _Shape:
    """An effect that is asked for as more than one number: along covariates, or at doses."""

    by: tuple[str, ...]
    doses: tuple[float, ...]
    reference: float | None

    @property
    def asked(self) -> bool:
        return bool(self.by or self.doses)

    def require_alone(self, method: str, more: bool) -> None:
        """MisuseError for what does not go together."""
        if self.reference is not None and not self.doses:
            raise MisuseError("--reference goes with --dose.")
        if self.by and self.doses:
            raise MisuseError("--by and --dose are two questions: ask one after the other.")
        if self.asked and (method or more):
            raise MisuseError(
                "--by and --dose have a method of their own and no single number to refute or explain: of the other "
                "options they take --family, --degree, --trim and --seed."
            )

    def answer(self, source: Path, graph: CausalGraph, treatment: str, outcome: str, options: dict[str, Any]) -> Answer:
        from causaldao.client.data.sources import read
        from causaldao.models.estimation import CONDITIONAL
        from causaldao.models.response import dose_response, effect_modification

        table, arrow = read(source), f"{treatment} -> {outcome}"
        asked = {"treatment": treatment, "outcome": outcome}
        notes = [f"note: {CONDITIONAL}"]
        if self.by:
            line = effect_modification(table, graph, treatment, outcome, self.by, **options)
            names = ", ".join(self.by)
            lines = [f"{arrow} at the mean of {names}: {_number(line.effect)}  (n = {line.n})"]
            lines += [f"  changes by {_number(slope)} for one unit of {name}" for name, slope in line.slopes.items()]
            notes += [f"note: {sentence}" for sentence in line.warnings]
            notes.append("note: where the effect is no line in the covariates, this is the best line.")
            return [{**asked, **asdict(line)}], notes, lines
        curve = dose_response(table, graph, treatment, outcome, self.doses, reference=self.reference, **options)
        against = "the mean dose" if self.reference is None else f"{self.reference:g}"
        lines = [f"{arrow}, each dose against {against}:"]
        lines += [f"  {one.dose:g}: {_number(one.effect)}" for one in curve]
        notes.append("note: each interval is for its dose alone, and the curve is a cubic that all rows share.")
        return [{**asked, "doses": [asdict(one) for one in curve]}], notes, lines


def _number(found: Coefficient) -> str:
    return _with_interval(found.value, *found.interval)


def _with_interval(value: float, low: float, high: float) -> str:
    style = shown((value, low, high), "+")
    return f"{value:{style}} [{low:{style}}, {high:{style}}]"


def _rows(
    source: Path, graph: CausalGraph, treatment: str, outcome: str, method: str, options: dict[str, Any],
    controls: list[str] | None, refute: bool, explain: bool,
) -> Answer:  # fmt: skip
    from causaldao.client.data.sources import read
    from causaldao.models.estimation import CONDITIONAL, estimate_effect
    from causaldao.models.refute import refute as refuted

    table = read(source)
    options = {**options, "method": method or "auto"}
    tried: tuple[Refutation, ...] = ()
    if refute:
        found, tried = refuted(table, graph, treatment, outcome, controls=controls or (), **options)
    else:
        found = estimate_effect(table, graph, treatment, outcome, **options)
    notes = [f"note: {sentence}" for sentence in (*found.warnings, CONDITIONAL)]
    lines = [_rows_line(found)]
    if explain:
        lines += [f"  {sentence}" for sentence in (found.estimand, *found.why)]
    lines += [_refutation_line(one) for one in tried]
    described = {**found.to_json(), **({"refutations": [one.to_json() for one in tried]} if refute else {})}
    return [described], notes, lines


def _rows_line(found: TableEffect) -> str:
    given = f" given {', '.join(found.adjustment)}" if found.adjustment else ""
    line = (
        f"{found.treatment} -> {found.outcome}{given}: {_with_interval(found.estimate, *found.interval)}  "
        f"({found.kind} by {found.method}; {found.contrast}; n = {found.n})"
    )
    if found.risk_ratio is not None:
        ratio, least, most = found.risk_ratio
        line += f"; risk ratio {ratio:.3f} [{least:.3f}, {most:.3f}]"
    return line + ("  (no causal path in the graph)" if found.implied else "")


def _refutation_line(one: Refutation) -> str:
    verdict = {True: "holds", False: "FAILS", None: "weigh"}[one.passed]
    return f"  {verdict}  {one.name}: {one.number:.4g} ({one.done}); {one.means}."


def _effect_line(found: dict[str, Any]) -> str:
    if found["estimate"] is None:
        return f"{found['treatment']} -> {found['outcome']}: no answer ({found['no_answer']})"
    given = ", ".join(found["adjustment"]) or "nothing"
    number = _with_interval(found["estimate"], *found["interval"])
    line = f"{found['treatment']} -> {found['outcome']} given {given}: {number}"
    return line + ("  (no causal path in the graph)" if found.get("graph_implies_zero") else "")


def _effect_notes(found: list[dict[str, Any]], source: Path, graph: CausalGraph | None) -> list[str]:
    """What must be known to read the numbers rightly."""
    notes = []
    if graph is None and not source.is_dir():
        notes.append(
            "note: nothing was adjusted for, so this is an association; it is an effect only if the treatment was "
            "drawn by lot. Give --graph to adjust."
        )
    if len(found) == 1 and found[0].get("graph_implies_zero"):
        from causaldao.models.plan import NO_PATH

        notes.append(f"note: {NO_PATH}")
    if len(found) > 1:
        notes.append("note: the graph leaves directions open; each line is the effect under some of them.")
    return notes


def _table_effects(
    source: Path, graph: CausalGraph | None, treatment: str, outcome: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """The effects from second moments, and a note where an arm is empty, so that they only extrapolate."""
    from causaldao.client.data.sources import read
    from causaldao.models.discovery.evidence import Evidence
    from causaldao.models.effects import average_effect, doubted, effect_set
    from causaldao.models.pattern import nearest_extension

    table = read(source)
    for name, role in ((treatment, "treatment"), (outcome, "outcome")):
        if name not in table.columns:
            raise MisuseError(f"The {role} {name!r} is no column; the table has {', '.join(map(str, table.columns))}.")
    frame = columns_of(table, source, {treatment, outcome, *(graph.nodes if graph is not None else ())})
    evidence = Evidence.from_data(frame)
    if graph is None:
        return [_effect(average_effect(evidence, treatment, outcome))], []
    found = effect_set(evidence, graph, treatment, outcome)
    if len(found) == 1 and found[0].implied:  # no graph of the class has a causal path
        found = (doubted(found[0], evidence, nearest_extension(graph)[0]),)
    return [_effect(effect) for effect in found], _positivity_notes(frame, treatment, found)


def _positivity_notes(frame: pd.DataFrame, treatment: str, found: Sequence[Effect]) -> list[str]:
    """The strata in which a treatment of two values never varies: least squares answers there all the same."""
    from causaldao.models.positivity import empty_strata

    if frame[treatment].nunique() != 2:
        return []
    treated = (frame[treatment] == frame[treatment].max()).to_numpy(dtype=float)
    strata = dict.fromkeys(text for one in found for text in empty_strata(frame, treated, one.adjustment, False))
    return [
        f"note: positivity is violated ({text}): there the number rests on straight lines alone, and no row says what "
        "the other choice would do. --method auto refuses such rows."
        for text in strata
    ]


def _effect(found: Effect) -> dict[str, Any]:
    described = {**vars(found), "adjustment": list(found.adjustment), "interval": list(found.interval)}
    return {**described, "graph_implies_zero": described.pop("implied")}


def _run_effects(run: Path, treatment: str, outcome: str) -> list[dict[str, Any]]:
    result = read_json(run / "result.json")
    found = [e for e in result["effects"] if (e["treatment"], e["outcome"]) == (treatment, outcome)]
    if not found:
        asked = ", ".join(f"{e['treatment']} -> {e['outcome']}" for e in result["effects"]) or "none"
        raise MisuseError(f"The run in {run} estimated no effect {treatment} -> {outcome}; it has: {asked}.")
    return found
