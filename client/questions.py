"""Questions to one table or to a finished run: `causaldao do`, `counterfactual`; `effects` has `effect`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.client.inputs import columns_of, read_json, seeded
from causaldao.console import Output, command, shown
from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.cli import read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from causaldao.models.fitting import Fitted
    from causaldao.models.graph import CausalGraph
    from causaldao.models.intervention import Intervention
    from causaldao.models.scm import NeuralSCM
    from causaldao.models.structural import StructuralModel

do_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
counterfactual_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_MAX_SAMPLES = 10_000_000
_MAX_REFITS = 1000
_MAX_GRAPHS = 32  # of a class, each of which is fitted

Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]
Source = Annotated[Path, typer.Argument(help="The folder of a finished run, or a CSV or Parquet file with --graph.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE, in the model's units (of a run: after a variable's transform)."),
]
Shifts = Annotated[
    list[str] | None, typer.Option(help="NAME=DELTA, added to what its causes make of it. A table only.")
]
Graph = Annotated[Path | None, typer.Option(help="A graph (JSON, from discover --out or a run), for a table.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        help="KIND for all variables or NAME=KIND: linear, additive, heteroscedastic, flow, categorical, poisson, "
        "negative-binomial. Left out: by the values. A table only."
    ),
]


@do_app.command("do")
def intervene(
    source: Source,
    target: Annotated[str, typer.Option(help="The variable whose distribution is asked for.")],
    assignments: Sets = None,
    shift: Shifts = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE that is seen once the action is done, not set; repeat it for several. A table only."
        ),
    ] = None,
    graph: Graph = None,
    kind: Kinds = None,
    samples: Annotated[int, typer.Option(help="Monte Carlo rows.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the fit and of the rows.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Say which paths carry the effect.")] = False,
    as_json: Json = False,
) -> None:
    """What the target would be if variables were set or shifted: by the model of a run, or of a table on a graph."""
    with command(as_json) as output:
        chosen, moved = _assignments(assignments or [], "--set"), _assignments(shift or [], "--shift")
        seen = _assignments(given or [], "--given")
        _require_question(chosen, moved, seen, target)
        if not 2 <= samples <= _MAX_SAMPLES:
            raise MisuseError(f"samples = {samples} must lie in [2, {_MAX_SAMPLES}].")
        if source.is_dir():
            _require_run(moved, seen, graph, kind)
            asked = _asked_of_run(source, chosen, target, samples, seed, explain)
        else:
            asked = _asked_of_table(source, graph, kind or [], (chosen, moved, seen), target, samples, seed, explain)
        _tell(output, *asked)


@counterfactual_app.command()
def counterfactual(
    source: Source,
    row: Annotated[Path, typer.Argument(help="A JSON object: each variable's value, in the model's units.")],
    assignments: Sets = None,
    shift: Shifts = None,
    graph: Graph = None,
    kind: Kinds = None,
    bootstrap: Annotated[
        int, typer.Option(help="Refits for an interval that covers what the table leaves open; 0 for none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the fit, the refits and the noise that a row leaves open.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Say which paths carry the change.")] = False,
    as_json: Json = False,
) -> None:
    """What this record would have been, had variables been set or shifted (abduction, action, prediction)."""
    with command(as_json) as output:
        chosen, moved = _assignments(assignments or [], "--set"), _assignments(shift or [], "--shift")
        _require_question(chosen, moved, {}, None)
        if source.is_dir():
            _require_run(moved, {}, graph, kind)
            asked = _changed_in_run(source, row, chosen, explain)
        else:
            asked = _changed_in_table(source, graph, kind or [], row, (chosen, moved), bootstrap, seed, explain)
        _tell(output, *asked)


def _tell(output: Output, data: dict[str, Any], text: str) -> None:
    """Print the answer; MisuseError if it is larger than numbers are, which JSON cannot say."""
    try:
        json.dumps(data, allow_nan=False)
    except ValueError as error:
        raise MisuseError(
            "The answer is larger than numbers can be: set, shift and give values nearer to those of the table."
        ) from error
    output.emit(data, text)


def _asked_of_run(
    run: Path, chosen: dict[str, float], target: str, samples: int, seed: int, explain: bool
) -> tuple[dict[str, Any], str]:
    model = _model(run)
    if target not in model.names:
        raise MisuseError(f"There is no variable {target!r}; the model has {', '.join(model.names)}.")
    rows = model.sample(samples, chosen, seeded(seed))
    values = rows[:, model.names.index(target)].sort().values
    low, high = float(values[int(0.05 * samples)]), float(values[min(int(0.95 * samples), samples - 1)])
    mean, error = float(values.mean()), float(values.std()) / samples**0.5
    notes = [*_intervention_notes(model, chosen, [target]), *_open_notes(run, model.graph, chosen, target)]
    why = _why(model.graph, chosen, {}, [target], [], explain)
    data = {
        "target": target, "mean": mean, "monte_carlo_error": error, "quantiles": {"0.05": low, "0.95": high},
        "notes": notes, "why": why,
    }  # fmt: skip
    return data, "\n".join([_law(target, mean, error, low, high), *notes, *why])


def _law(target: str, mean: float, error: float, low: float, high: float) -> str:
    style = shown((mean, low, high))
    return (
        f"{target}: mean {mean:{style}} (Monte Carlo error {error:{style}}), 90 % of values in "
        f"[{low:{style}}, {high:{style}}]"
    )


def _changed_in_run(run: Path, row: Path, chosen: dict[str, float], explain: bool) -> tuple[dict[str, Any], str]:
    import torch

    model = _model(run)
    factual = _row(row, model.names)
    changed = model.counterfactual(torch.tensor([factual], dtype=torch.float64), chosen)[0].tolist()
    both = {
        name: {"factual": was, "counterfactual": would}
        for name, was, would in zip(model.names, factual, changed, strict=True)
    }
    notes = [*_intervention_notes(model, chosen, []), *_open_notes(run, model.graph, chosen, None)]
    why = _why(model.graph, chosen, {}, _reached(model.graph, chosen), [], explain)
    lines = [
        _change(name, was, f"{would:{shown((was, would))}}")
        for name, was, would in zip(model.names, factual, changed, strict=True)
    ]
    return {"variables": both, "notes": notes, "why": why}, "\n".join([*lines, *notes, *why])


def _asked_of_table(
    source: Path, graph: Path | None, kinds: list[str], asked: tuple[dict[str, float], ...], target: str, samples: int,
    seed: int, explain: bool,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    from causaldao.models.queries import conditional, distribution

    chosen, moved, seen = asked
    frame, fits = _fits(source, graph, kinds, seed, [*chosen, *moved, *seen, target], (chosen, moved, [target, *seen]))
    act = _act(chosen, moved)
    answers = []
    for fitted in fits:
        generator = seeded(seed)
        if seen:
            answers.append(conditional(fitted.model, target, act, seen, n=samples, generator=generator))
        else:
            answers.append(distribution(fitted.model, target, act, n=samples, generator=generator))
    model, first = fits[0].model, answers[0]
    means = [answer.mean for answer in answers]
    notes = [*_fit_notes(fits, chosen, moved, seen), *_unseen_notes(frame, fits, chosen)]
    why = [
        line for fitted in fits[:1] for line in _why(fitted.model.graph, chosen, moved, [target], list(seen), explain)
    ]
    data: dict[str, Any] = {
        "target": target, "mean": first.mean, "monte_carlo_error": first.error,
        "quantiles": {f"{level:g}": value for level, value in first.quantiles.items()},
        "effective_rows": first.effective, "range_over_class": [min(means), max(means)], "graphs": len(fits),
        "kinds": model.kinds, "fit": _fit_table(fits[0]), "notes": notes, "why": why,
    }  # fmt: skip
    text = _law(target, first.mean, first.error, first.quantiles[0.05], first.quantiles[0.95])
    if len(fits) > 1:
        style = shown(means)
        least, most = f"{min(means):{style}}", f"{max(means):{style}}"
        text = f"{target}: mean from {least} to {most} over the {len(fits)} graphs of the class"
    if seen:
        text += f"; {first.effective:.0f} effective rows of {samples}"
    return data, "\n".join([text, *notes, *why])


def _changed_in_table(
    source: Path, graph: Path | None, kinds: list[str], row: Path, asked: tuple[dict[str, float], ...], bootstrap: int,
    seed: int, explain: bool,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    from causaldao.models.fitting import ensemble
    from causaldao.models.queries import counterfactual_interval

    chosen, moved = asked
    if bootstrap != 0 and not 2 <= bootstrap <= _MAX_REFITS:
        raise MisuseError(f"--bootstrap {bootstrap}: expected 0, or 2 to {_MAX_REFITS} refits.")
    frame, fits = _fits(source, graph, kinds, seed, [*chosen, *moved], None)
    factual = dict(zip(fits[0].model.names, _row(row, fits[0].model.names), strict=True))
    act = _act(chosen, moved)
    answers = []
    for fitted in fits:
        generator, model = seeded(seed), fitted.model
        others: tuple[StructuralModel, ...] = ()
        if bootstrap:
            others = ensemble(
                frame[list(model.names)], model.graph, model.kinds, members=bootstrap, generator=generator
            )
        answers.append(counterfactual_interval(model, factual, act, others=others, generator=generator))
    variables: dict[str, dict[str, Any]] = {}
    for name, was in factual.items():
        values = [answer.value[name] for answer in answers]
        ends = [answer.interval[name] for answer in answers]
        variables[name] = {
            "factual": was, "counterfactual": values[0], "range_over_class": [min(values), max(values)],
            "interval": [min(low for low, _ in ends), max(high for _, high in ends)],
        }  # fmt: skip
    notes = _fit_notes(fits, chosen, moved, factual)
    reached = _reached(fits[0].model.graph, {**chosen, **moved})
    why = _why(fits[0].model.graph, chosen, moved, reached, [], explain)
    data = {
        "variables": variables, "level": answers[0].level, "covers": answers[0].covers, "graphs": len(fits),
        "kinds": fits[0].model.kinds, "fit": _fit_table(fits[0]), "notes": notes, "why": why,
    }  # fmt: skip
    lines = [_counterfactual_line(name, value) for name, value in variables.items()]
    return data, "\n".join([*lines, answers[0].covers, *notes, *why])


def _counterfactual_line(name: str, value: dict[str, Any]) -> str:
    (least, most), (low, high) = value["range_over_class"], value["interval"]
    style = shown((value["factual"], least, most))
    would = f"{value['counterfactual']:{style}}"
    if least < most:
        would = f"{least:{style}} to {most:{style}} over the class"
    return _change(name, value["factual"], would + (f"  [{low:{style}}, {high:{style}}]" if low < high else ""))


def _change(name: str, was: float, would: str) -> str:
    return f"{name}: {was:{shown([was])}} -> {would}"


def _fits(
    source: Path, graph: Path | None, kinds: list[str], seed: int, named: list[str],
    question: tuple[dict[str, float], dict[str, float], list[str]] | None,
) -> tuple[pd.DataFrame, list[Fitted]]:  # fmt: skip
    """The graph's columns, and a model for each graph that the answer may depend on: one, if graph and question settle
    it."""
    from causaldao.client.data.sources import read
    from causaldao.models.fitting import fit

    if graph is None:
        raise MisuseError(f"{source} is a table: say by --graph what causes what (JSON, from discover --out).")
    drawn = read_graph(graph)
    if unknown := sorted(set(named) - set(drawn.nodes)):
        raise MisuseError(f"There is no variable {', '.join(unknown)}; the graph has {', '.join(drawn.nodes)}.")
    table = read(source)
    if missing := sorted(set(drawn.nodes) - set(table.columns)):
        raise DataError(f"{source} lacks the columns {', '.join(missing)} of the graph. Add them, or redraw the graph.")
    frame = columns_of(table, source, drawn.nodes)
    made = _kinds(kinds, drawn.nodes)
    return frame, [fit(frame, dag, made, generator=seeded(seed)) for dag in _graphs(drawn, graph, question)]


def _graphs(
    drawn: CausalGraph, path: Path, question: tuple[dict[str, float], dict[str, float], list[str]] | None
) -> tuple[CausalGraph, ...]:
    from causaldao.errors import NotIdentifiable
    from causaldao.models.identification import identify
    from causaldao.models.pattern import extensions

    if drawn.bidirected:
        pairs = ", ".join(f"{a} <-> {b}" for a, b in sorted(drawn.bidirected))
        raise MisuseError(
            f"{path} has unmeasured causes ({pairs}), and a structural model of the table needs all of them. Ask "
            "causaldao effect, which can adjust for what is measured or say that nothing can."
        )
    found = extensions(drawn, _MAX_GRAPHS + 1)
    if not found:
        raise ConfigurationError(f"No DAG is consistent with {path}: its marks contradict each other. Redraw it.")
    if len(found) > 1 and question is not None and not question[1]:
        chosen, _, (target, *seen) = question
        try:
            identify(drawn, list(chosen), [target], seen)
            return found[:1]
        except NotIdentifiable:
            pass  # then the answer is what each of them says
    if len(found) > _MAX_GRAPHS:
        lines = ", ".join(f"{a} - {b}" for a, b in sorted(drawn.undirected))
        raise NotIdentifiable(
            f"{path} leaves {lines} open: more than {_MAX_GRAPHS} graphs, over which the answer may differ. Direct "
            "some of them by knowledge (discover --knowledge)."
        )
    return found


def _kinds(texts: list[str], names: tuple[str, ...]) -> dict[str, str] | str | None:
    """A kind for every variable (KIND), or for some (NAME=KIND)."""
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        if not equals or name in found:
            raise MisuseError(f"--kind {text!r}: expected one KIND for all, or NAME=KIND, each name once.")
        found[name] = value
    if unknown := sorted(set(found) - set(names)):
        raise MisuseError(f"--kind names {', '.join(unknown)}; the graph has {', '.join(names)}.")
    return found or None


def _require_question(
    chosen: dict[str, float], moved: dict[str, float], seen: dict[str, float], target: str | None
) -> None:
    if not chosen and not moved:
        raise MisuseError("Nothing is done: give --set NAME=VALUE or --shift NAME=DELTA.")
    if twice := sorted(set(chosen) & set(moved)):
        raise MisuseError(f"{', '.join(twice)} is both set and shifted. Say once what is done to each variable.")
    if target in chosen:
        raise MisuseError(f"{target} is set and asked for: it is {chosen[target]:g}. Ask about another variable.")
    if target in seen or (both := sorted(set(seen) & set(chosen))):
        odd = target if target in seen else ", ".join(both)
        raise MisuseError(
            f"{odd} is given by --given and also {'asked for' if target in seen else 'set'}. Leave one out."
        )


def _require_run(moved: dict[str, float], seen: dict[str, float], graph: Path | None, kinds: list[str] | None) -> None:
    wrong = {"--shift": moved, "--given": seen, "--graph": graph is not None, "--kind": kinds}
    if used := [name for name, value in wrong.items() if value]:
        raise MisuseError(f"{', '.join(used)} goes with a table; a run has a model of its own, which answers --set.")


def _act(chosen: dict[str, float], moved: dict[str, float]) -> Intervention:
    from causaldao.models.intervention import Intervention, Set, Shift

    hard, soft = ({name: kind(value) for name, value in part.items()} for kind, part in ((Set, chosen), (Shift, moved)))
    return Intervention({**hard, **soft})


def _reached(graph: CausalGraph, acted: Mapping[str, float]) -> list[str]:
    if unknown := sorted(set(acted) - set(graph.nodes)):
        raise MisuseError(f"There is no variable {', '.join(unknown)}; the model has {', '.join(graph.nodes)}.")
    return sorted(graph.descendants(list(acted)) - set(acted))


def _why(
    graph: CausalGraph,
    chosen: dict[str, float],
    moved: dict[str, float],
    targets: list[str],
    seen: list[str],
    wanted: bool,
) -> list[str]:
    from causaldao.models.queries import explain

    act = _act(chosen, moved)
    return [line for target in targets for line in explain(graph, act, target, seen)] if wanted else []


def _fit_table(fitted: Fitted) -> list[dict[str, Any]]:
    from causaldao.models.fitting import described

    return described(fitted.reports)


def _fit_notes(
    fits: list[Fitted], chosen: dict[str, float], moved: dict[str, float], seen: dict[str, float]
) -> list[str]:
    """Where an answer is far-fetched: values that the table does not have, mechanisms that foretell nothing."""
    model, notes = fits[0].model, []
    for name, value in (*chosen.items(), *seen.items()):
        one = model.columns[model.names.index(name)]
        if not one.low <= value <= one.high:
            notes.append(
                f"note: {name} = {value:g} lies outside the table's range [{one.low:g}, {one.high:g}]: the model "
                "extrapolates."
            )
    for name, delta in moved.items():
        one = model.columns[model.names.index(name)]
        if abs(delta) > one.high - one.low:
            notes.append(
                f"note: {name} is shifted by {delta:g}, more than the table's range [{one.low:g}, {one.high:g}]: "
                "the model extrapolates."
            )
    if len(fits) > 1:
        lines = sorted({edge for fitted in fits for edge in fitted.model.graph.directed})
        open_pairs = ", ".join(f"{a} - {b}" for a, b in lines if a < b and (b, a) in lines)
        notes.append(
            f"note: the graph leaves {open_pairs} open: the answer is that of each of its {len(fits)} DAGs. What is "
            "said of paths and fit is said of the first."
        )
    return notes


def _unseen_notes(frame: pd.DataFrame, fits: list[Fitted], chosen: dict[str, float]) -> list[str]:
    """Of variables of two values: the strata of their causes in which no row has the value that is set."""
    import numpy as np

    from causaldao.models.positivity import NONE, empty_strata

    found: dict[str, None] = {}
    for name, value in chosen.items():
        if frame[name].nunique() == 2:
            has = np.asarray(frame[name] == value, dtype=np.float64)
            for fitted in fits:
                parents = tuple(sorted(fitted.model.graph.parents(name)))
                strata = [text for text in empty_strata(frame, has, parents, False) if text.endswith(NONE)]
                found |= dict.fromkeys(
                    f"note: {text.removesuffix(NONE)}, none with {name} = {value:g}: what it would do there, the "
                    "mechanisms guess."
                    for text in strata
                )
    return list(found)


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


def _open_notes(run: Path, dag: CausalGraph, chosen: dict[str, float], target: str | None) -> list[str]:
    """That the run's model is of one DAG, where the graph that was adopted leaves open what the answer may hang on."""
    from causaldao.errors import NotIdentifiable
    from causaldao.models.identification import identify

    if not (run / "graph.json").is_file():
        return []
    adopted = read_graph(run)
    if not adopted.undirected:
        return []
    if target is not None:
        try:
            identify(adopted, list(chosen), [target])
            return []
        except NotIdentifiable:
            pass
    pairs = ", ".join(f"{a} - {b}" for a, b in sorted(adopted.undirected))
    taken = ", ".join(sorted(f"{a} -> {b}" for a, b in dag.directed if (min(a, b), max(a, b)) in adopted.undirected))
    return [
        f"note: the adopted graph leaves {pairs} open. The model takes them as {taken}; the other way round the "
        "answer may be another."
    ]


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


def _assignments(texts: list[str], option: str) -> dict[str, float]:
    values = {}
    for text in texts:
        name, equals, value = text.rpartition("=")  # a name may hold one
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number):
            raise MisuseError(f"Expected {option} NAME=NUMBER, a finite one, but got {text!r}.")
        if name in values:
            raise MisuseError(f"{name!r} stands twice after {option}: say each once.")
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
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
