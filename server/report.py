"""`report.html`: what a study found, for people, in one file without scripts or connections.

Everything in `result.json` may come from a member, so every string is escaped (Jinja autoescape), and the
page forbids itself scripts and connections by its own content security policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from causaldao.errors import MisuseError

_REQUIRED = ("study", "members", "marks", "effects", "ledger", "rounds", "seconds")
_OPTIONAL = ("simulation", "privacy", "pool", "warnings", "example", "environments")
_MINUS = "\N{MINUS SIGN}"
_STATES = {
    "ok": "counted",
    "excluded": "excluded by rank (not an accusation)",
    "accused": "accused: its evidence fails the test against the pool",
    "quarantined": "quarantined: its reply was not valid",
    "absent": "absent",
}
_PLOT_LEFT, _FOREST_LEFT, _PLOT_RIGHT = 150.0, 260.0, 700.0


def write(result: Mapping[str, Any], graph_svg: str, path: Path, *, explore: bool = False) -> None:
    """Write the report of `result` (the content of `result.json`) to `path`, UTF-8, replacing what is there.

    `graph_svg` is what `pictures.svg.draw` returned; it is trusted and put in as it is, everything else is
    escaped. `explore` links to the interactive `graph.html` beside it.

    Raises:
        MisuseError: `result` lacks a section that every result has; the message lists all that are missing.
    """
    path.write_text(render(result, graph_svg, explore=explore), encoding="utf-8")


def render(result: Mapping[str, Any], graph_svg: str, *, explore: bool = False) -> str:
    """The text that `write` writes. `simulation`, `privacy`, `pool`, `pooled` and a loss may be null."""
    if missing := [name for name in _REQUIRED if name not in result]:
        raise MisuseError(f"A result has the sections {', '.join(_REQUIRED)}; missing: {', '.join(missing)}.")
    whole = {name: result.get(name) for name in _OPTIONAL} | dict(result)
    answered = [effect for effect in result["effects"] if effect["estimate"] is not None]
    return _TEMPLATES.get_template("report.html").render(
        result=whole,
        answers=[_answer(effect) for effect in answered],
        unanswered=[effect for effect in result["effects"] if effect["estimate"] is None],
        counted=[m for m in result["members"] if m["status"] == "ok"],
        others=[m for m in result["members"] if m["status"] != "ok"],
        states=_STATES,
        lacking=any(member.get("lacks") for member in result["members"]),
        by_sums=_accused_by_sums(result),
        aside=_set_aside(whole["pool"]),
        arrows=(result.get("graph") or {}).get("arrows", ()),
        marks=sorted(result["marks"], key=lambda mark: (mark["status"] != "contested", mark["kind"])),
        forests=_forests(answered),
        rounds=_rounds_plot(result["rounds"], [m["name"] for m in result["members"]]),
        judged=_judged(result["rounds"]),
        meters=_meters(whole["privacy"]),
        sites=_sites(whole["pool"]),
        slowest=max(result["seconds"].values(), default=0.0) or 1.0,
        # Drawn by `pictures.svg.draw`, which escapes the names in it.
        graph=Markup(graph_svg),
        explore=explore,
    )


def _accused_by_sums(result: Mapping[str, Any]) -> set[str]:
    """Those whom an effect accuses, and not the pool of evidence."""
    pooled = set((result.get("pool") or {}).get("accused", ()))
    return {name for effect in result["effects"] for name in effect.get("accused", ())} - pooled


def _set_aside(pool: Mapping[str, Any] | None) -> set[str]:
    """Those whose environment has too few members to be compared: excluded, but by no rank."""
    return {name for one in (pool or {}).get("aside", {}).values() for name in one["members"]}


def _answer(effect: Mapping[str, Any]) -> dict[str, Any]:
    """An effect in words and figures, rounded to two significant digits of its standard error."""
    decimals = _decimals(effect["standard_error"])
    low, high = effect["interval"]
    pooled, widened = effect.get("pooled"), effect.get("interval_with_liars")
    withstands = effect.get("robustness")
    return {
        "bound": None,
        "graph_implies_zero": False,
        "method": "moments",
        **effect,
        "level": effect.get("level", 0.95),
        "figures": {
            key: _fixed(effect.get(key), decimals)
            for key in ("estimate", "standard_error", "sampling_error", "privacy_error", "pooled", "bound")
        },
        "low": _fixed(low, decimals),
        "high": _fixed(high, decimals),
        "robustness": None if withstands is None else [f"{share:.0%}" for share in withstands],
        "widened": None if widened is None else [_fixed(end, decimals) for end in widened],
        "excludes_zero": low > 0 or high < 0,
        "covers_pooled": None if pooled is None else low <= pooled <= high,
    }


@dataclass(frozen=True)
class _Forest:
    """Effects of one unit on one axis; abscissae in the plot's pixels."""

    unit: str
    rows: Sequence[Mapping[str, Any]]
    ticks: Sequence[tuple[float, str]]
    zero: float
    left: float = _FOREST_LEFT


def _forests(effects: Sequence[Mapping[str, Any]]) -> list[_Forest]:
    units = list(dict.fromkeys(str(effect.get("unit") or "") for effect in effects))
    return [_forest(unit, [e for e in effects if str(e.get("unit") or "") == unit]) for unit in units]


def _forest(unit: str, effects: Sequence[Mapping[str, Any]]) -> _Forest:
    pooled = [effect["pooled"] for effect in effects if effect.get("pooled") is not None]
    values = [
        0.0,
        *pooled,
        *(value for effect in effects for value in (*effect["interval"], effect["estimate"])),
    ]
    axis = _Axis.over(values, _FOREST_LEFT, _PLOT_RIGHT)
    rows = [
        {
            "name": f"{effect['treatment']} → {effect['outcome']}",
            "low": axis.at(effect["interval"][0]),
            "high": axis.at(effect["interval"][1]),
            "estimate": axis.at(effect["estimate"]),
            "pooled": None if effect.get("pooled") is None else axis.at(effect["pooled"]),
        }
        for effect in effects
    ]
    return _Forest(unit, rows, axis.ticks(), axis.at(0.0))


@dataclass(frozen=True)
class _Rounds:
    """Loss per round as a line, and below it, as a grid, who was kept or excluded in each round."""

    columns: Sequence[tuple[float, str]]  # place and number of each round
    line: Sequence[tuple[float, float, str]]  # (x, y, loss) of the rounds that released a loss
    ticks: Sequence[tuple[float, str]]
    grid: Sequence[tuple[str, Sequence[tuple[float, str]]]]  # member, then (place, "kept" | "light" | "excluded")
    rules: Sequence[str]
    radius: float


def _rounds_plot(rounds: Sequence[Mapping[str, Any]], members: Sequence[str]) -> _Rounds:
    step = min(54.0, (_PLOT_RIGHT - _PLOT_LEFT) / max(1, len(rounds)))
    place = [_PLOT_LEFT + step * (i + 0.5) for i in range(len(rounds))]
    losses = [(x, r["loss"]) for x, r in zip(place, rounds, strict=True) if r["loss"] is not None]
    axis = _Axis.over([loss for _, loss in losses], 150.0, 14.0)
    every = max(1, -(-len(rounds) // 20))
    columns = [
        (x, str(r["round"]) if i % every == 0 else "") for i, (x, r) in enumerate(zip(place, rounds, strict=True))
    ]
    return _Rounds(
        columns,
        [(x, axis.at(loss), f"{loss:.4g}") for x, loss in losses],
        axis.ticks() if losses else [],
        [(name, _presence(name, place, rounds)) for name in members],
        list(dict.fromkeys(str(r["rule"]) for r in rounds)),
        min(4.5, step / 2 - 1),
    )


def _presence(name: str, place: Sequence[float], rounds: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    seen = []
    for x, entry in zip(place, rounds, strict=True):
        state = "excluded" if name in entry["excluded"] else "kept" if name in entry["kept"] else None
        if state == "kept" and name in entry.get("down_weighted", ()):
            state = "light"
        if state is not None:
            seen.append((x, state))
    return seen


def _judged(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rounds in which somebody was left out, or weighed less than half of the heaviest; each with the weights."""
    found = []
    for entry in rounds:
        weights, lighter = entry.get("weights") or {}, entry.get("down_weighted", ())
        if entry["excluded"] or lighter:
            light = [f"{name} ({_plain(weights.get(name))})" for name in lighter]
            heaviest = _plain(max(weights.values(), default=None))
            found.append({**entry, "left_out": entry["excluded"], "light": light, "heaviest": heaviest})
    return found


def _meters(privacy: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if privacy is None:
        return []
    epsilon = privacy["epsilon"]
    return [
        {"name": name, "spent": spent, "share": None if not epsilon else spent / epsilon}
        for name, spent in privacy["spent"].items()
    ]


def _sites(pool: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    if pool is None:
        return []
    states = {name: state for state in ("kept", "excluded", "accused") for name in pool[state]}
    names = dict.fromkeys([*states, *pool["distances"], *pool["weights"]])
    furthest = max([d for d in pool["distances"].values() if d is not None], default=0.0) or 1.0
    heaviest = max([w for w in pool["weights"].values() if w is not None], default=0.0) or 1.0
    return [
        {
            "name": name,
            "state": states.get(name, "not in the pool"),
            "distance": (distance := pool["distances"].get(name)),
            "weight": (weight := pool["weights"].get(name)),
            "distance_share": (distance or 0.0) / furthest,
            "weight_share": (weight or 0.0) / heaviest,
        }
        for name in names
    ]


@dataclass(frozen=True)
class _Axis:
    """A linear scale from [low, high] to pixels, ticks at 1, 2 or 5 times a power of ten."""

    low: float
    high: float
    start: float
    end: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values, default=0.0), max(values, default=1.0)
        spread = high - low or abs(high) or 1.0
        rough = spread / 5
        power = 10.0 ** floor(log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
        return cls(low - 0.06 * spread, high + 0.06 * spread, start, end, step)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        first, last = -floor(-self.low / self.step), floor(self.high / self.step)
        decimals = max(0, -floor(log10(self.step) + 1e-9))
        return [(self.at(i * self.step), _fixed(i * self.step, decimals)) for i in range(first, last + 1)]


def _decimals(error: float | None) -> int:
    if not error or not isfinite(error):
        return 4
    return min(8, max(0, 1 - floor(log10(abs(error)))))


def _fixed(value: float | None, decimals: int) -> str:
    if value is None:
        return "–"
    # Adding zero turns what would print as "-0" into "0".
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", _MINUS)


def _plain(value: float | None, digits: int = 3) -> str:
    """A number to `digits` significant digits; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}g}".replace("-", _MINUS)


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", _MINUS)


def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plain=_plain, count=_count)
    return environment


_TEMPLATES = _templates()
