"""The benchmark of robustness as people read it: a table in Markdown, and a heat map as one self-contained SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_CELL, _ROW, _LEFT, _TOP, _GAP, _MARGIN = 58.0, 24.0, 190.0, 118.0, 34.0, 16.0
_BAD, _GOOD = (178, 24, 43), (33, 102, 172)  # red to blue through white: told apart by the colour-blind too
_STYLE = (
    "text{font:12px ui-sans-serif,system-ui,Helvetica,Arial,sans-serif;fill:#16202e}"
    ".t{font-weight:600;font-size:14px}.v{text-anchor:middle;font-size:11px}.r{text-anchor:end}.ground{fill:#fff}"
)


def markdown(result: Mapping[str, Any]) -> str:
    """Per cell a table: each rule's clean score, its worst and under which attack, and what each attack leaves."""
    lines = [
        "# Rules against attacks", "",
        f"{result['members']} members, means over {result['seeds']} seeds with 95 % intervals. Scores: share of test "
        "records put in the right class; for rand-hie the share of the pooled fit's R².", "",
    ]  # fmt: skip
    for cell in result["cells"]:
        lines += _table(cell)
    lines += _peers(result)
    return "\n".join(lines) + "\n"


def title(cell: Mapping[str, Any]) -> str:
    noise = f", noise {cell['noise']:g}" if cell["noise"] else ""
    return f"{cell['data']}, α = {cell['alpha']:g}, f = {cell['faulty']}{noise}"


def _table(cell: Mapping[str, Any]) -> list[str]:
    lines = [f"## {title(cell)}", "", "| rule | clean | worst | under | backdoor |", "|---|---|---|---|---|"]
    for rule, found in (*cell["rules"].items(), *cell["peers"].items()):
        worst, backdoor = found["worst"], found["backdoor"]
        most = max((one["mean"] for one in backdoor.values()), default=None)
        lines.append(
            f"| {rule} | {_number(found['clean'])} | {_number(worst) if worst else '–'} "
            f"| {worst['attack'] if worst else '–'} | {'–' if most is None else f'{most:.2f}'} |"
        )
    return [*lines, ""]


def _number(found: Mapping[str, Any]) -> str:
    if found["interval"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ± {(found['interval'][1] - found['interval'][0]) / 2:.3f}"


def _peers(result: Mapping[str, Any]) -> list[str]:
    lines = ["## Beside byzfl", ""]
    if not result["peer"]["installed"]:
        return [*lines, f"byzfl is not installed: {result['peer']['remedy']}"]
    lines += ["| cell | ours | under | byzfl's best | theirs | under |", "|---|---|---|---|---|---|"]
    for one in result["acceptance"]:
        lines.append(
            f"| {title(one)} | {one['default']} {one['ours']:.3f} | {one['under']} | {one['peer']} "
            f"| {one['theirs']:.3f} | {one['peer_under']} |"
        )
    return lines


def heat_map(cells: Sequence[Mapping[str, Any]]) -> str:
    """One panel a cell, rules down and attacks across, a score in each field; the same cells give the same text."""
    top, width, panels = _MARGIN, 0.0, []
    for cell in cells:
        panel, right, bottom = _panel(cell, top)
        panels.append(panel)
        top, width = bottom + _GAP, max(width, right)
    body = "\n".join(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + _MARGIN:.0f} {top:.0f}" role="img">'
        f"<title>Scores of rules under attacks</title><style>{_STYLE}</style>"
        f'<rect class="ground" width="100%" height="100%"/>\n{body}\n</svg>\n'
    )


def _panel(cell: Mapping[str, Any], top: float) -> tuple[str, float, float]:
    rows = {**cell["rules"], **cell["peers"]}
    columns = ["clean", *dict.fromkeys(attack for found in rows.values() for attack in found["attacks"])]
    parts = [f'<text class="t" x="{_MARGIN}" y="{top + 14:.0f}">{escape(title(cell))}</text>']
    for j, name in enumerate(columns):
        x, y = _LEFT + (j + 0.6) * _CELL, top + _TOP - 6
        parts.append(f'<text transform="translate({x:.0f} {y:.0f}) rotate(-50)">{escape(name)}</text>')
    for i, (rule, found) in enumerate(rows.items()):
        y = top + _TOP + i * _ROW
        parts.append(f'<text class="r" x="{_LEFT - 8:.0f}" y="{y + 16:.0f}">{escape(rule)}</text>')
        scores = {"clean": found["clean"], **found["attacks"]}
        parts += [_field(scores.get(name), _LEFT + j * _CELL, y) for j, name in enumerate(columns)]
    # The names of the attacks lean out to the right of the last column.
    return "\n".join(parts), _LEFT + len(columns) * _CELL + 60, top + _TOP + len(rows) * _ROW


def _field(found: Mapping[str, Any] | None, x: float, y: float) -> str:
    frame = f'x="{x:.0f}" y="{y:.0f}" width="{_CELL - 1:.0f}" height="{_ROW - 1:.0f}"'
    if found is None:
        return f'<rect {frame} fill="#eceff3"/>'
    value = found["mean"]
    dark = abs(value - 0.5) > 0.35
    ink = ' style="fill:#fff"' if dark else ""
    return (
        f'<rect {frame} fill="{_colour(value)}"/>'
        f'<text class="v" x="{x + _CELL / 2:.0f}" y="{y + 16:.0f}"{ink}>{value:.2f}</text>'
    )


def _colour(value: float) -> str:
    """From red at 0 through white at ½ to blue at 1."""
    share = min(max(value, 0.0), 1.0)
    end, depth = (_BAD, 1 - 2 * share) if share < 0.5 else (_GOOD, 2 * share - 1)
    return "#" + "".join(f"{round(255 + depth * (part - 255)):02x}" for part in end)
