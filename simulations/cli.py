"""`causaldao simulate`, `causaldao bench` and `causaldao example`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causaldao.console import command

if TYPE_CHECKING:
    import pandas as pd

    from causaldao.study import Study

simulate_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
bench_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
example_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

MEMBERS = 10
Json = Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")]


@simulate_app.command()
def simulate(
    study: Annotated[Path, typer.Argument(help="A study file (TOML), or the name of a scenario such as rand-hie.")],
    out: Annotated[Path, typer.Option(help="The folder of the run.")],
    members: Annotated[
        int | None, typer.Option(help="How many institutions: 10, or with --site-column one for each site.")
    ] = None,
    liars: Annotated[int, typer.Option(help="How many of them lie.")] = 0,
    attack: Annotated[
        str,
        typer.Option(help="How they lie: forge, forge-rows, flip-updates, quiet; forge-graph where ballots are local."),
    ] = "forge",
    rule: Annotated[str, typer.Option(help="Aggregation rule of pool and updates, instead of the study's.")] = "",
    faulty: Annotated[int | None, typer.Option(help="Fault bound f, instead of the study's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the liars and the simulated noise.")] = 0,
    data: Annotated[
        str, typer.Option(help="A CSV or Parquet file, or a data set's name; the study's name if left out.")
    ] = "",
    site_column: Annotated[
        str, typer.Option(help="The column that says whose each row is: a member for each of its values.")
    ] = "",
    environment_column: Annotated[
        str, typer.Option(help="The column that says under which of the study's environments a site's rows are.")
    ] = "",
    engine: Annotated[
        str, typer.Option(help="inline: one process. ray: Flower's simulation engine, a process for each core.")
    ] = "inline",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    with_updates: Annotated[
        bool, typer.Option("--with-updates", help="Keep the members' updates in the ledger, for a deeper audit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study over simulated institutions, from one table dealt to them at random, or by its column of sites."""
    with command(as_json) as output:
        from causaldao.server.progress import Progress
        from causaldao.simulations.federation import Setting, simulate
        from causaldao.simulations.scenarios import load_study

        _one_thread()
        chosen = load_study(study, rule=rule or None, faulty=faulty)
        dealt, environments = _members(chosen, _table(data, chosen.name), site_column, environment_column, members)
        sites = tuple(dealt) if isinstance(dealt, dict) else ()
        number = len(sites) or (MEMBERS if members is None else members)
        setting = Setting(number, liars, attack, seed, sites)
        with Progress(quiet=as_json) as progress:
            result = simulate(
                chosen,
                dealt,
                out,
                setting,
                engine=engine,
                resume=resume,
                progress=progress,
                with_updates=with_updates,
                environments=environments,
            )
        output.emit({"out": str(out), "result": result}, lambda: summary(result, out))


@bench_app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(
            help="engine: cost of messages and rounds. demo: the demo over many seeds. scale: many members, inline "
            "and on Ray. wire: a round over gRPC, beside Flower's FedAvg. ledger: durable appends beside bare SQLite, "
            "and a large ledger verified. aggregation: robust rules beside byzfl and Flower, in reads of the matrix. "
            "robustness: rules against attacks on real data. attacks: the demo's study under every attack. "
            "effects: real data with an answer of its own (NHEFS, LaLonde). "
            "federated-effects: NHEFS as eight institutions, with privacy and with liars. "
            "causal-unit: graphs and counterfactuals learnt from planted models. "
            "discovery: PC, GES, FCI and BOSS beside causal-learn: agreement, speed, growth. "
            "edge-probabilities: whether the shares of a bootstrap keep their word. "
            "networks: discovery on tables of known discrete networks, beside causal-learn. "
            "federated: discovery with liars, beside all rows in one place. "
            "local-ballots: graphs from private rows beside the pool's, with liars. "
            "identification: separation and adjustment beside pgmpy and dowhy. "
            "continuous: NOTEARS and DAGMA, raw and standardised. "
            "nonlinear: features beside numbers, for curved and mixed mechanisms. "
            "federated-features: whole decisions of ten members on features. "
            "lacking: graphs where members lack variables. "
            "scm: structural models beside dowhy's gcm, and planted counterfactuals and root causes."
        ),
    ],
    members: Annotated[int | None, typer.Option(help="Members of the federation (engine, scale).")] = None,
    parameters: Annotated[int | None, typer.Option(help="Parameters of the model (engine).")] = None,
    repeats: Annotated[int | None, typer.Option(help="Pairs of which the median is taken.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            help="Seeds (demo, causal-unit, federated-effects: 20, federated: 12, scm: 10, local-ballots, robustness, "
            "networks: 5, attacks: 1)."
        ),
    ] = None,
    entries: Annotated[int | None, typer.Option(help="Entries of the large ledger (ledger: 1,000,000).")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to aggregate: cpu, or cuda where PyTorch sees one (aggregation).")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="A part to run, all without; repeat it for several (causal-unit, discovery, nonlinear)."),
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Pairs of runs of which the median is taken (discovery).")] = None,
    settings: Annotated[
        str | None, typer.Option(help="Which settings, as a pattern such as 'ER1/*/eps1/*', or sachs (federated).")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many at a time (federated, robustness).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the table and the picture (robustness, federated).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a benchmark and print its medians."""
    with command(as_json) as output:
        from causaldao.simulations.benchmarks import run

        _one_thread()
        options = {
            "members": members, "parameters": parameters, "repeats": repeats, "seeds": seeds, "entries": entries,
            "device": device, "out": out, "parts": part or None, "pairs": pairs, "settings": settings,
            "processes": processes,
        }  # fmt: skip
        result = run(name, **{key: value for key, value in options.items() if value is not None})
        output.emit(result, lambda: "\n".join(f"{key}: {value}" for key, value in result.items()))


@example_app.command()
def example(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    members: Annotated[int, typer.Option(help="For how many hospitals.")] = 3,
    as_json: Json = False,
) -> None:
    """Write a study and a table for each of a few hospitals, to try a federation of real processes with."""
    with command(as_json) as output:
        from causaldao.simulations.example import write_example

        study, tables = write_example(folder, members)
        files = [str(folder / "study.toml"), *map(str, tables)]
        output.emit({"study": study.name, "hash": study.hash, "files": files}, "\n".join(files))


def _one_thread() -> None:
    """The tensors here are small: threads that compete for them cost ten times what they gain."""
    import torch

    torch.set_num_threads(1)


def _members(
    study: Study, table: pd.DataFrame, site: str, environment: str, members: int | None
) -> tuple[pd.DataFrame | dict[str, pd.DataFrame], dict[str, str]]:
    """The table to be dealt, or the rows of each site, which must fit the study, and the environment it declares."""
    from causaldao.client.data.checks import check
    from causaldao.declared import held
    from causaldao.errors import DataError, MisuseError
    from causaldao.simulations.sites import by_site

    if environment and not site:
        raise MisuseError("--environment-column goes with --site-column: a member's records are of one environment.")
    if not site:
        return table, {}
    parts, declared = by_site(table, site, environment)
    if members not in (None, len(parts)):
        raise MisuseError(f"--members {members}, but the column {site!r} names {len(parts)} sites: leave it out.")
    odd = [
        f"{name}: {problem}"
        for name, part in parts.items()
        for problem in check(part, held(study.encoding, set(study.members.may_lack) - set(part.columns)))
        if not problem.warning
    ]
    if odd:
        raise DataError(
            "The sites' rows do not fit the study. A variable that a site does not have is empty in all of its rows, "
            "and named in the study's members.may_lack.",
            problems=odd,
        )
    return parts, declared


def _table(data: str, study: str) -> pd.DataFrame:
    from causaldao.errors import MisuseError
    from causaldao.simulations.datasets import NAMES
    from causaldao.simulations.scenarios import load_table

    if not data and study not in NAMES:
        raise MisuseError(f"There is no data set for study {study!r}: give a CSV or Parquet file with --data.")
    return load_table(data or study)


def summary(result: dict[str, Any], out: Path) -> str:
    """The run in a few lines, for people."""
    lines = [f"{result['study']['question']}"]
    for effect in result["effects"]:
        if effect["estimate"] is None:
            lines.append(f"  {effect['treatment']} -> {effect['outcome']}: no answer ({effect['no_answer']})")
            continue
        low, high = effect["interval"]
        pooled = "" if effect["pooled"] is None else f"; pooled, not private: {effect['pooled']:+.4f}"
        bound = ""
        if effect["bound"]:
            widest = "[{:+.4f}, {:+.4f}]".format(*effect["interval_with_liars"])
            bound = f"; {widest} if liars within the noise moved it by {effect['bound']:.4f}, the most that they can"
        lines.append(
            f"  {effect['treatment']} -> {effect['outcome']}: {effect['estimate']:+.4f} "
            f"[{low:+.4f}, {high:+.4f}]{pooled}{bound}"
        )
        if effect.get("accused"):
            lines.append(f"    accused by their sums: {', '.join(effect['accused'])}")
    lines += [f"  warning: {warning}" for warning in result["warnings"]]
    for status in ("accused", "excluded", "quarantined", "absent"):
        names = [member["name"] for member in result["members"] if member["status"] == status]
        if names:
            lines.append(f"  {status}: {', '.join(names)}")
    if result["simulation"] and result["simulation"]["liars"]:
        lines.append(f"  liars in truth: {', '.join(result['simulation']['liars'])}")
    spent = max(result["privacy"]["spent"].values(), default=0.0)
    noise = " (simulated noise: not private)" if result["privacy"]["noise"] == "simulated" else ""
    lines.append(
        f"  privacy: epsilon {spent:.3f} of {result['privacy']['epsilon']:g} at delta "
        f"{result['privacy']['delta']:g}{noise}"
    )
    fallen = "with too few supporters" if result["study"].get("evidence") == "local" else "contested"
    lines.append(
        f"  graph: {len(result['graph']['pattern']['edges'])} edges, {len(result['contested'])} marks {fallen}"
    )
    lines.append(f"  ledger: {result['ledger']['size']} entries, root {result['ledger']['root'][:16]}")
    return "\n".join([*lines, f"  report: {out / 'report.html'}"])
