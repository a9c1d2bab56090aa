"""The benchmark of federated discovery as people read it: a table in Markdown, and a chart as one SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_COLOURS = {
    "multi-krum": "#b2182b", "sieve": "#2166ac", "sieve+doubt": "#67a9cf", "sieve+fit": "#1b7837", "mean": "#999",
    "majority": "#ccc",
}  # fmt: skip
_LEFT, _ROW, _WIDE, _TOP = 330.0, 9.0, 460.0, 44.0
_MOST = 30.0  # extra distance at the right end: more is drawn up to there, and written
_STYLE = "text{font:11px ui-sans-serif,system-ui,Helvetica,Arial,sans-serif;fill:#16202e}.r{text-anchor:end}"


def markdown(result: Mapping[str, Any]) -> str:
    """A row per setting and method: SHD beyond that of the pooled rows, moral F1, liars kept, and who is accused."""
    lines = [
        f"Means over {result['seeds']} seeds, with 95 % intervals.", "",
        "| setting | method | SHD beyond pooled | moral F1 | skeleton F1 | liars kept | honest accused "
        "| liars accused |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in result["settings"]:
        if "outside" in one:
            lines.append(f"| {one['name']} | – | {one['outside']} | – | – | – | – | – |")
        for method, found in one.get("methods", {}).items():
            numbers = [_number(found.get(key)) for key in _KEYS]
            lines.append(f"| {one['name']} | {method} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


_KEYS = ("extra", "moral_f1", "skeleton_f1", "liars_kept", "honest_accused", "liars_accused")


def _number(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.3g} ± {(found['interval'][1] - found['interval'][0]) / 2:.2g}"


def chart(result: Mapping[str, Any]) -> str:
    """A bar per setting and method, as long as the SHD beyond that of the pooled rows; the same each time."""
    run = [one for one in result["settings"] if "methods" in one]
    used = [name for name in _COLOURS if any(name in one["methods"] for one in run)]
    parts, y = [], _TOP
    for one in run:
        methods = {name: found for name, found in one["methods"].items() if name in _COLOURS}
        middle = y + _ROW * len(methods) / 2 + 4
        parts.append(f'<text class="r" x="{_LEFT - 8:.0f}" y="{middle:.0f}">{escape(one["name"])}</text>')
        for name, found in methods.items():
            parts.append(_bar(found["extra"]["mean"], y, _COLOURS[name]))
            y += _ROW
        y += 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDE + 50:.0f} {y + 10:.0f}" role="img">'
        f"<title>Structural Hamming distance beyond that of the pooled rows</title><style>{_STYLE}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{_legend(used)}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bar(value: float, y: float, colour: str) -> str:
    length = max(1.0, min(max(value, 0.0), _MOST) / _MOST * _WIDE)
    return (
        f'<rect x="{_LEFT:.0f}" y="{y:.0f}" width="{length:.1f}" height="{_ROW - 1:.0f}" fill="{colour}"/>'
        f'<text x="{_LEFT + length + 4:.0f}" y="{y + 8:.0f}">{value:+.1f}</text>'
    )


def _legend(names: Sequence[str]) -> str:
    fields = []
    for k, name in enumerate(names):
        x = _LEFT + 95 * k
        fields.append(f'<rect x="{x:.0f}" y="14" width="10" height="10" fill="{_COLOURS[name]}"/>')
        fields.append(f'<text x="{x + 14:.0f}" y="23">{escape(name)}</text>')
    return "\n".join(fields)
