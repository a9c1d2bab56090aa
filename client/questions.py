"""Questions to one table or to a finished run: `causaldao discover`, `do`, `counterfactual`; `effects` has `effect`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.console import command
from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.models.cli import PAG

if TYPE_CHECKING:
    import pandas as pd

    from causaldao.models.scm import NeuralSCM

discover_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
do_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
counterfactual_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

_MAX_SAMPLES = 10_000_000

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
    seed: Annotated[int, typer.Option(help="Of the restarts of boss.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the graph (JSON) here, for effect --graph.")] = None,
    as_json: Json = False,
) -> None:
    """Find a causal graph in one table. The rows stay in this process."""
    with command(as_json) as output:
        import torch

        from causaldao.models.discovery import discover
        from causaldao.models.discovery.evidence import Evidence
        from causaldao.models.knowledge import NONE, Knowledge

        known = NONE if knowledge is None else Knowledge.from_toml(_text(knowledge))
        options: dict[str, Any] = {"alpha": alpha} if method in ("pc", "fci", "rfci") else {}
        if method == "boss":
            options = {"generator": torch.Generator().manual_seed(seed)}
        graph = discover(Evidence.from_data(read_table(data)), method, known, **options)
        found = graph.to_json() | ({"kind": PAG} if method in ("fci", "rfci") else {})
        if out is not None:
            _write(out, json.dumps(found, indent=1))
        edges = "\n".join(str(edge) for edge in sorted(graph.edges)) or "no edges"
        output.emit({"method": method, "graph": found}, edges)


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


def read_table(path: Path) -> pd.DataFrame:
    """A table of numbers; DataError names the columns that are none."""
    from causaldao.client.data.sources import read

    frame = read(path)
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
