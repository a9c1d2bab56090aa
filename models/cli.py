"""`causaldao identify`: can this graph say what an intervention does, and by what formula?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from causaldao.console import command
from causaldao.errors import ConfigurationError, MisuseError
from causaldao.files import parse_json

if TYPE_CHECKING:
    from causaldao.models.graph import CausalGraph

PAG = "pag"  # the kind of a graph in which even an arrow may be confounded

identify_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@identify_app.command()
def identify(
    graph: Annotated[Path, typer.Argument(help="A graph (JSON, from discover --out or a run), or a run's folder.")],
    treatment: Annotated[list[str], typer.Option(help="The variable that is set; repeat it for several.")],
    outcome: Annotated[list[str], typer.Option(help="The variable that answers; repeat it for several.")],
    given: Annotated[
        list[str] | None, typer.Option(help="A variable that is seen, not set; repeat it for several.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why, step by step.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON envelope on stdout.")] = False,
) -> None:
    """Whether GRAPH settles an effect, and the formula that gives it from observed data. No rows are read.
    Exit status 16 if it does not: then the hedge, or the undirected edge, says why no data can.
    """
    with command(as_json) as output:
        from causaldao.models.identification import identify

        estimand = identify(read_graph(graph), treatment, outcome, given or ())
        lines = [str(estimand), *(f"  {sentence}" for sentence in estimand.why if explain)]
        output.emit({**estimand.to_json(), "equation": str(estimand)}, "\n".join(lines))


def read_graph(path: Path) -> CausalGraph:
    """A graph from what discover or a run writes: the graph itself, the JSON envelope, or a run's two graphs, in its
    file or its folder. Of the two it is the pattern, which claims no direction that the evidence left open.

    Raises:
        ConfigurationError: the file cannot be read, or holds no graph.
        MisuseError: it holds a PAG, which may have nothing but arrows and yet is no DAG.
    """
    from causaldao.models.graph import CausalGraph

    file = path / "graph.json" if path.is_dir() else path
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}. Give a graph (JSON) or a run's folder.") from error
    except ValueError as error:
        raise ConfigurationError(f"{file} is not valid JSON: {error}. Give what discover --out wrote.") from error
    for name in ("data", "graph", "pattern"):
        value = value.get(name, value) if isinstance(value, dict) else value
    if not isinstance(value, dict) or not {"nodes", "edges"} <= set(value):
        raise ConfigurationError(f"{file} holds no graph: expected an object with 'nodes' and 'edges'.")
    if value.get("kind") == PAG:
        raise MisuseError(
            f"{file} holds a PAG, as fci and rfci find it: what causes two variables may be unmeasured even where it "
            "has a -> b, so no effect is decided from it. Find the graph by boss, ges or pc, or draw what you know "
            "with arrows, and two heads for an unmeasured cause."
        )
    return CausalGraph.from_json(value)
