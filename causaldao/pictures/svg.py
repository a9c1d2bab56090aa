"""A causal graph as one self-contained SVG, without graphviz: rows of boxes, curved links, the votes on each.

The layout is the layered one of Sugiyama, Tagawa and Toda (1981): ranks by longest path, an order within the
ranks by barycentres, then least-squares abscissae. A link that passes a rank keeps a lane of its own there,
so no line runs under a box. Colours follow the reader's light or dark setting; paper is always light.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from math import isqrt
from types import MappingProxyType
from typing import Any
from unicodedata import east_asian_width

from causaldao.errors import ConfigurationError
from causaldao.models.graph import CausalGraph

_Item = str | tuple[int, int]  # a variable by name, or the lane (link, rank) of a link that passes a rank
_Point = tuple[float, float]
_Rect = tuple[float, float, float, float]

_SMALL_LETTER, _LINE = 6.3, 16.0
_NARROW, _BROAD = frozenset("iljftrI.,:;|!'()[] "), frozenset("mwMW@%&")
_LANE, _SPACE, _MARGIN = 16.0, 26.0, 22.0
_HEAD = 9.0
_NOTE, _MORE = 76, "and "  # the letters of a note that stand below any graph; how a line begins that counts the rest
_CURVE_AT = (0.5, 0.38, 0.62, 0.28, 0.72, 0.2, 0.8)

_STYLE = """
.cg-ground{fill:#fff}.cg-box{fill:#f5f7fa;stroke:#8593a6;stroke-width:1.3}
.cg-name,.cg-role,.cg-text,.cg-votes{font:11px ui-sans-serif,system-ui,"Segoe UI",Helvetica,Arial,sans-serif}
.cg-role,.cg-text,.cg-votes{fill:#4a5768}.cg-name{fill:#16202e;font-size:13px;font-weight:600;text-anchor:middle}
.cg-role,.cg-votes{text-anchor:middle}.cg-role{font-style:italic}
.cg-treatment{fill:#dce9fd;stroke:#1d5fd1;stroke-width:2}.cg-outcome{fill:#d9f2e3;stroke:#16794a;stroke-width:2}
.cg-line{fill:none;stroke:#53627a;stroke-width:1.6}.cg-head{fill:#53627a;stroke:#53627a;stroke-linejoin:round}
.cg-ring{fill:#fff;stroke:#53627a;stroke-width:1.6}.cg-plate{fill:#fff}
.cg-contested .cg-line{stroke:#c2410c;stroke-dasharray:6 4}
.cg-contested .cg-head{fill:#c2410c;stroke:#c2410c}
.cg-struck .cg-line{stroke-dasharray:1.5 4.5}.cg-contested .cg-ring{stroke:#c2410c}
.cg-contested .cg-votes,.cg-note{fill:#b03a0a}
@media screen and (prefers-color-scheme:dark){
.cg-ground,.cg-plate,.cg-ring{fill:#151b23}.cg-box{fill:#222b37;stroke:#6b7a8f}.cg-name{fill:#e8edf4}
.cg-role,.cg-text,.cg-votes{fill:#aeb9c8}.cg-treatment{fill:#173463;stroke:#6aa2ff}
.cg-outcome{fill:#12402b;stroke:#4cc98a}.cg-line,.cg-ring{stroke:#93a2b8}.cg-head{fill:#93a2b8;stroke:#93a2b8}
.cg-contested .cg-line,.cg-contested .cg-ring{stroke:#ff9a5c}
.cg-contested .cg-head{fill:#ff9a5c;stroke:#ff9a5c}
.cg-contested .cg-votes,.cg-note{fill:#ff9a5c}}
"""


@dataclass(frozen=True)
class _Link:
    upper: str
    lower: str
    ends: tuple[str, str]  # the mark at the upper and at the lower end: "-", ">" or "o"
    mark: Mapping[str, Any] | None  # the votes on the adjacency, if there were any
    contested: bool
    struck: bool = False  # no longer in the graph: too many opposed it
    share: float | None = None  # of the draws of a bootstrap that have the link


@dataclass(frozen=True)
class _Plan:
    rank: Mapping[str, int]
    x: Mapping[_Item, float]
    top: Sequence[float]  # of each rank
    width: Mapping[str, float]
    height: float

    def left(self) -> float:
        return min([self.x[name] - self.width[name] / 2 for name in self.width], default=0.0)

    def right(self) -> float:
        return max([self.x[name] + self.width[name] / 2 for name in self.width], default=0.0)

    def box(self, name: str) -> _Rect:
        return self.x[name] - self.width[name] / 2, self.top[self.rank[name]], self.width[name], self.height


def draw(
    pattern: CausalGraph,
    marks: Sequence[Mapping[str, Any]],
    *,
    treatment: str | None = None,
    outcome: str | None = None,
    shares: Mapping[frozenset[str], float] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> str:
    """Return `pattern` as the text of an SVG document; the same arguments give the same text.

    `marks` are the votes as `result.json` holds them: `kind`, `nodes`, `support`, `oppose`, `abstain`,
    `status`. A link is labelled "support/eligible". Contested marks are dashed and in another colour; a
    contested adjacency that is not in `pattern` was struck and is dotted; contested colliders are named
    below the graph. `shares` are those of the draws of a bootstrap in which a pair is linked; a link without votes is
    labelled with its own. `treatment` and `outcome` get a colour and a word. `notes` stand below the graph,
    a line each, as far as there is room. Names are escaped. Meant for up to about twenty variables.

    Raises:
        ConfigurationError: a mark, the treatment or the outcome names a variable that `pattern` lacks.
    """
    links, plan, roles = _planned(pattern, marks, treatment, outcome)
    links = [replace(link, share=shares.get(frozenset((link.upper, link.lower)))) for link in links]
    curves = _curves(links, plan)
    colliders = [m for m in marks if m["kind"] == "collider" and m["status"] == "contested"]
    below = [*_few([_contest(mark) for mark in colliders]), *_few([_cut(note) for note in notes])]
    return _document(pattern, links, plan, curves, roles, below)


@dataclass(frozen=True)
class Place:
    """The box of a variable: its middle (x, y), its width and height, in pixels."""

    x: float
    y: float
    width: float
    height: float


def places(
    pattern: CausalGraph,
    marks: Sequence[Mapping[str, Any]],
    *,
    treatment: str | None = None,
    outcome: str | None = None,
) -> tuple[dict[str, Place], dict[frozenset[str], list[tuple[str, float, float]]]]:
    """Where `draw` puts each variable, and, for each link that passes others, the points it goes through, downwards.

    A point is (upper end of its link, x, y). Raises as `draw` does.
    """
    links, plan, _ = _planned(pattern, marks, treatment, outcome)
    middle = [top + plan.height / 2 for top in plan.top]
    boxes = {n: Place(plan.x[n], middle[plan.rank[n]], plan.width[n], plan.height) for n in pattern.nodes}
    bends: dict[frozenset[str], list[tuple[str, float, float]]] = {}
    for index, link in enumerate(links):
        lanes = _chain(index, link, plan.rank)[1:-1]
        reach = plan.height / 2 + 5  # upright from above a rank to below it, so that no corner of a box is cut
        passed = [(plan.x[lane], middle[lane[1]]) for lane in lanes if isinstance(lane, tuple)]
        points = [(link.upper, x, y + way) for x, y in passed for way in (-reach, reach)]
        if points:
            bends[frozenset((link.upper, link.lower))] = points
    return boxes, bends


def _planned(
    pattern: CausalGraph, marks: Sequence[Mapping[str, Any]], treatment: str | None, outcome: str | None
) -> tuple[list[_Link], _Plan, dict[str, str]]:
    """The links, where everything stands, and the roles of treatment and outcome."""
    roles = {name: role for name, role in ((treatment, "treatment"), (outcome, "outcome")) if name is not None}
    named = {name for mark in marks for name in mark["nodes"]} | set(roles)
    if unknown := sorted(named - set(pattern.nodes)):
        raise ConfigurationError(f"The graph has no variable {', '.join(map(repr, unknown))}: it cannot be drawn.")
    links = _links(pattern, marks, treatment, outcome)
    return links, _plan(pattern.nodes, links, roles), roles


def _links(
    pattern: CausalGraph, marks: Sequence[Mapping[str, Any]], treatment: str | None, outcome: str | None
) -> list[_Link]:
    votes = {frozenset(m["nodes"]): m for m in marks if m["kind"] == "adjacency"}
    ends = [((e["from"], e["to"]), (e["marks"][0], e["marks"][1])) for e in pattern.to_json()["edges"]]
    present = {frozenset(pair) for pair, _ in ends}
    struck = [pair for pair, m in votes.items() if m["status"] == "contested" and pair not in present]
    place = {name: i for i, name in enumerate(_order(pattern.nodes, ends, treatment, outcome))}
    found = [_link(pair, end, votes.get(frozenset(pair)), place) for pair, end in ends]
    for pair in struck:
        upper, lower = sorted(pair, key=place.__getitem__)
        found.append(_Link(upper, lower, ("-", "-"), votes[pair], contested=True, struck=True))
    return sorted(found, key=lambda link: (place[link.upper], place[link.lower], link.ends))


def _link(
    pair: tuple[str, str], ends: tuple[str, str], mark: Mapping[str, Any] | None, place: Mapping[str, int]
) -> _Link:
    contested = mark is not None and mark["status"] == "contested"
    if place[pair[0]] < place[pair[1]]:
        return _Link(*pair, ends, mark, contested)
    return _Link(pair[1], pair[0], (ends[1], ends[0]), mark, contested)


def _order(
    nodes: Sequence[str],
    ends: Iterable[tuple[tuple[str, str], tuple[str, str]]],
    treatment: str | None,
    outcome: str | None,
) -> list[str]:
    """A topological order of the directed part; among equals the treatment first, the outcome last."""
    parents: dict[str, set[str]] = {name: set() for name in nodes}
    for (a, b), marks in ends:
        if marks == ("-", ">"):
            parents[b].add(a)
        elif marks == (">", "-"):
            parents[a].add(b)
    order: list[str] = []
    while len(order) < len(nodes):
        left = [name for name in nodes if name not in order]
        # A graph whose directed part has a cycle is refused by CausalGraph; `or left` only keeps this total.
        free = [name for name in left if parents[name] <= set(order)] or left
        order.append(min(free, key=lambda name: (name == outcome, name != treatment)))
    return order


def _plan(nodes: Sequence[str], links: Sequence[_Link], roles: Mapping[str, str]) -> _Plan:
    rank = _ranks(nodes, links)
    rows: list[list[_Item]] = [[] for _ in range(max(rank.values(), default=-1) + 1)]
    for name in nodes:
        rows[rank[name]].append(name)
    segments: list[tuple[_Item, _Item]] = []
    for index, link in enumerate(links):
        chain = _chain(index, link, rank)
        segments += pairwise(chain)
        for lane in chain[1:-1]:
            rows[lane[1] if isinstance(lane, tuple) else rank[lane]].append(lane)
    lines = {name: wrapped(name) for name in nodes}
    ends = Counter(link.upper for link in links), Counter(link.lower for link in links)
    ports = {name: max(end[name] for end in ends) for name in nodes}
    width = {n: max(92.0, max(map(_breadth, lines[n])) + 22, 12.0 * ports[n] + 16) for n in nodes}
    height = 18 + _LINE * max([len(lines[n]) + 0.8 * (n in roles) for n in nodes], default=1)
    rows = _untangled(rows, segments)
    x = _abscissae(rows, segments, width)
    return _Plan(rank, x, _tops(rank, x, segments, height), width, height)


def _ranks(nodes: Sequence[str], links: Sequence[_Link]) -> dict[str, int]:
    """Longest path from the top, at most `full` boxes a rank; variables without a link come last."""
    full = max(5, isqrt(len(nodes)))
    above: dict[str, list[str]] = {name: [] for name in nodes}
    below: dict[str, list[str]] = {name: [] for name in nodes}
    for link in links:
        above[link.lower].append(link.upper)
        below[link.upper].append(link.lower)
    linked = list(dict.fromkeys(name for link in links for name in (link.upper, link.lower)))
    rank: dict[str, int] = {}
    count: Counter[int] = Counter()
    while waiting := [name for name in linked if name not in rank]:
        name = next(n for n in waiting if all(p in rank for p in above[n]))
        rank[name] = _free_rank(1 + max([rank[p] for p in above[name]], default=-1), count, full)
    for name in sorted(linked, key=lambda n: -rank[n]):
        lowest = min([rank[c] for c in below[name]], default=rank[name] + 1) - 1
        if len(below[name]) > len(above[name]) and lowest > rank[name] and count[lowest] < full:
            count.update({rank[name]: -1, lowest: 1})
            rank[name] = lowest
    last = max(rank.values(), default=-1) + 1
    rank |= {name: _free_rank(last, count, full) for name in nodes if name not in rank}
    used = sorted(set(rank.values()))
    return {name: bisect_right(used, value) - 1 for name, value in rank.items()}


def _free_rank(start: int, count: Counter[int], full: int) -> int:
    while count[start] >= full:
        start += 1
    count[start] += 1
    return start


def _chain(index: int, link: _Link, rank: Mapping[str, int]) -> list[_Item]:
    lanes = ((index, at) for at in range(rank[link.upper] + 1, rank[link.lower]))
    return [link.upper, *lanes, link.lower]


def _untangled(rows: list[list[_Item]], segments: Sequence[tuple[_Item, _Item]]) -> list[list[_Item]]:
    """Order each rank by the barycentre of its neighbours, down and up in turn; keep the best seen."""
    near: dict[_Item, list[_Item]] = {item: [] for row in rows for item in row}
    for a, b in segments:
        near[a].append(b)
        near[b].append(a)
    best, fewest = rows, _crossings(rows, segments)
    for sweep in range(24):
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        for at in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            fixed = {item: i for i, item in enumerate(rows[at - 1 if down else at + 1])}
            rows[at] = _by_barycentre(rows[at], fixed, near)
        crossings = _crossings(rows, segments)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _by_barycentre(row: list[_Item], fixed: Mapping[_Item, int], near: Mapping[_Item, list[_Item]]) -> list[_Item]:
    def centre(at: int) -> float:
        places = [fixed[other] for other in near[row[at]] if other in fixed]
        return sum(places) / len(places) if places else float(at)

    return [row[at] for at in sorted(range(len(row)), key=lambda at: (centre(at), at))]


def _crossings(rows: Sequence[Sequence[_Item]], segments: Sequence[tuple[_Item, _Item]]) -> int:
    place = {item: (at, i) for at, row in enumerate(rows) for i, item in enumerate(row)}
    by_rank: dict[int, list[tuple[int, int]]] = {}
    for a, b in segments:
        by_rank.setdefault(place[a][0], []).append((place[a][1], place[b][1]))
    total = 0
    for pairs in by_rank.values():
        total += sum((a - c) * (b - d) < 0 for i, (a, b) in enumerate(pairs) for c, d in pairs[:i])
    return total


def _abscissae(
    rows: Sequence[Sequence[_Item]], segments: Sequence[tuple[_Item, _Item]], width: Mapping[str, float]
) -> dict[_Item, float]:
    """Pull every item to the mean of its neighbours, keeping the order and a space between boxes.

    A lane pulls harder than a box does (1, 2, 8 as in Gansner et al., 1993): long links become straight.
    """
    near: dict[_Item, list[tuple[_Item, float]]] = {item: [] for row in rows for item in row}
    for a, b in segments:
        pull = (1.0, 2.0, 8.0)[isinstance(a, tuple) + isinstance(b, tuple)]
        near[a].append((b, pull))
        near[b].append((a, pull))
    total = {item: sum(pull for _, pull in others) for item, others in near.items()}
    x: dict[_Item, float] = {}
    for row in rows:
        x |= _spread(row, [(0.0, 1.0) for _ in row], width)
    for sweep in range(40):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            sums = [sum(x[other] * pull for other, pull in near[item]) for item in row]
            wanted = [(s / (total[i] or 1.0), total[i] or 1.0) for s, i in zip(sums, row, strict=True)]
            x |= _spread(row, wanted, width)
    return x


def _spread(
    row: Sequence[_Item], wanted: Sequence[tuple[float, float]], width: Mapping[str, float]
) -> dict[_Item, float]:
    """The least-squares places next to `wanted` (place, weight) that keep order and distance.

    Isotonic regression by pooling adjacent violators.
    """
    half = [width[item] / 2 if isinstance(item, str) else _LANE / 2 for item in row]
    offset = [0.0]
    for a, b in pairwise(range(len(row))):
        boxes = isinstance(row[a], str) and isinstance(row[b], str)
        offset.append(offset[-1] + half[a] + half[b] + (_SPACE if boxes else _LANE))
    blocks: list[tuple[float, float, int]] = []
    for (want, weight), shift in zip(wanted, offset, strict=False):
        blocks.append((want - shift, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (second, v, m), (first, w, k) = blocks.pop(), blocks.pop()
            blocks.append(((first * w + second * v) / (w + v), w + v, k + m))
    level = [value for value, _, size in blocks for _ in range(size)]
    return {item: at + shift for item, at, shift in zip(row, level, offset, strict=False)}


def _tops(
    rank: Mapping[str, int],
    x: Mapping[_Item, float],
    segments: Sequence[tuple[_Item, _Item]],
    height: float,
) -> list[float]:
    """The upper edge of each rank; the wider the links below a rank swing, the more room they get."""
    swing: dict[int, float] = {}
    for a, b in segments:
        at = rank[a] if isinstance(a, str) else a[1]
        swing[at] = max(swing.get(at, 0.0), abs(x[a] - x[b]))
    tops = [0.0]
    for at in range(max(rank.values(), default=0)):
        gap = min(118.0, 58.0 + 0.16 * swing[at]) if at in swing else 24.0
        tops.append(tops[-1] + height + gap)
    return tops


def _curves(links: Sequence[_Link], plan: _Plan) -> list[list[tuple[_Point, _Point]]]:
    """Per link its spans between ranks, each from a lower edge to an upper edge, vertical at both ends."""
    chains = [_chain(index, link, plan.rank) for index, link in enumerate(links)]
    leave = _ports({i: (c[0], plan.x[c[1]]) for i, c in enumerate(chains)}, plan)
    enter = _ports({i: (c[-1], plan.x[c[-2]]) for i, c in enumerate(chains)}, plan)
    curves = []
    for index, chain in enumerate(chains):
        xs = [leave[index], *(plan.x[lane] for lane in chain[1:-1]), enter[index]]
        first = plan.rank[links[index].upper]
        ys = [(plan.top[first + i] + plan.height, plan.top[first + i + 1]) for i in range(len(xs) - 1)]
        curves.append([((a, y0), (b, y1)) for (a, b), (y0, y1) in zip(pairwise(xs), ys, strict=True)])
    return curves


def _ports(towards: Mapping[int, tuple[_Item, float]], plan: _Plan) -> dict[int, float]:
    """Where on the edge of its box each link starts or ends, in the order of where it comes from."""
    by_box: dict[str, list[int]] = {}
    for index, (box, _) in sorted(towards.items(), key=lambda pair: (pair[1][1], pair[0])):
        by_box.setdefault(str(box), []).append(index)
    places = {}
    for box, indices in by_box.items():
        step = min(24.0, (plan.width[box] - 24) / max(1, len(indices) - 1))
        for i, index in enumerate(indices):
            places[index] = plan.x[box] + (i - (len(indices) - 1) / 2) * step
    return places


def _at(span: tuple[_Point, _Point], t: float) -> _Point:
    """The point at `t` of the cubic that `_path` writes: its control points lie half-way down."""
    (x0, y0), (x1, y1) = span
    return x0 + (x1 - x0) * (3 - 2 * t) * t * t, y0 + (y1 - y0) * (1.5 * t * (1 - t) + t**3)


def _labels(links: Sequence[_Link], curves: Sequence[Sequence[tuple[_Point, _Point]]]) -> list[_Point | None]:
    """A place on each voted link for its votes, off the other labels and, if it can be, off other links."""
    placed: list[_Rect] = []
    places: list[_Point | None] = []
    dots = [[_at(span, t / 16) for span in spans for t in range(17)] for spans in curves]
    for index, link in enumerate(links):
        if not _votes(link) or (link.mark and any(link.mark is other.mark for other in links[:index])):
            places.append(None)
            continue
        others = [dot for i, line in enumerate(dots) if i != index for dot in line]
        options = [_at(span, t) for t in _CURVE_AT for span in curves[index]]
        costs = [_cost(_plate(at, link), placed, others) for at in options]
        best = options[costs.index(min(costs))]
        placed.append(_plate(best, link))
        places.append(best)
    return places


def _plate(at: _Point, link: _Link) -> _Rect:
    width = _SMALL_LETTER * len(_votes(link)) + 8
    return at[0] - width / 2, at[1] - 8, width, 16


def _cost(plate: _Rect, placed: Iterable[_Rect], dots: Iterable[_Point]) -> int:
    x, y, w, h = plate
    hits = sum(x < px + pw and px < x + w and y < py + ph and py < y + h for px, py, pw, ph in placed)
    return 100 * hits + sum(x - 2 < dx < x + w + 2 and y < dy < y + h for dx, dy in dots)


def _document(
    pattern: CausalGraph,
    links: Sequence[_Link],
    plan: _Plan,
    curves: Sequence[Sequence[tuple[_Point, _Point]]],
    roles: Mapping[str, str],
    below: Sequence[str],
) -> str:
    xs = [x for spans in curves for span in spans for x, _ in span] + [plan.left(), plan.right()]
    left, right = min(xs) - _MARGIN, max(max(xs), min(xs) + 420) + _MARGIN
    bottom = (plan.top[-1] + plan.height if pattern.nodes else 0.0) + _MARGIN
    legend, end = _legend(links, below, left + _MARGIN, right - _MARGIN, bottom + 6)
    box = (left, -_MARGIN, right - left, end + 2 * _MARGIN)
    body = [_drawn(link, spans) for link, spans in zip(links, curves, strict=True)]
    body += [_voted(link, at) for link, at in zip(links, _labels(links, curves), strict=True) if at is not None]
    body += [_boxed(name, plan.box(name), roles.get(name)) for name in pattern.nodes]
    drawn = sum(not link.struck for link in links)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{_numbers(*box)}" width="{box[2]:.0f}" '
            f'height="{box[3]:.0f}" role="img" aria-labelledby="cg-title cg-description">',
            f'<title id="cg-title">Causal graph of {len(pattern.nodes)} variables and {drawn} links</title>',
            f'<desc id="cg-description">{_safe("; ".join(_sentence(link) for link in links))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="cg-ground" {_frame(box)} rx="10"/>',
            *body,
            *legend,
            "</svg>\n",
        ]
    )


def _drawn(link: _Link, spans: Sequence[tuple[_Point, _Point]]) -> str:
    (x0, y0), (x1, y1) = spans[0][0], spans[-1][1]
    upper, lower = link.ends
    inner = [((x0, y0 + _room(upper)), spans[0][1]), *spans[1:]]
    inner[-1] = (inner[-1][0], (x1, y1 - _room(lower)))
    path = " L".join(_path(span) for span in inner)
    return (
        f'<g{_class(link)}><title>{_safe(_sentence(link))}</title><path class="cg-line" d="M{path}"/>'
        f"{_end(upper, x0, y0, 1)}{_end(lower, x1, y1, -1)}</g>"
    )


def _path(span: tuple[_Point, _Point]) -> str:
    (x0, y0), (x1, y1) = span
    middle = (y0 + y1) / 2
    return f"{_numbers(x0, y0)} C{_numbers(x0, middle, x1, middle, x1, y1)}"


def _room(mark: str) -> float:
    return {">": _HEAD - 1, "o": 7.0}.get(mark, 0.0)


def _end(mark: str, x: float, y: float, away: int) -> str:
    """The mark at (x, y); `away` is +1 if the link leaves downwards, -1 if it arrives from above."""
    if mark == ">":
        base = y + away * _HEAD
        corners = f"M{_numbers(x, y + away)} L{_numbers(x - 4, base)} L{_numbers(x + 4, base)} Z"
        return f'<path class="cg-head" d="{corners}"/>'
    if mark == "o":
        return f'<circle class="cg-ring" cx="{x:.1f}" cy="{y + away * 4:.1f}" r="3.2"/>'
    return ""


def _voted(link: _Link, at: _Point) -> str:
    plate = f'<rect class="cg-plate" {_frame(_plate(at, link))} rx="4"/>'
    text = f'<text class="cg-votes" x="{at[0]:.1f}" y="{at[1] + 4:.1f}">{_votes(link)}</text>'
    return f"<g{_class(link)}>{plate}{text}</g>"


def _boxed(name: str, box: _Rect, role: str | None) -> str:
    x, y, w, h = box
    lines = wrapped(name)
    first = y + h / 2 - _LINE * (len(lines) - 1 + 0.8 * (role is not None)) / 2 + 4.5
    texts = [
        f'<text class="cg-name" x="{x + w / 2:.1f}" y="{first + i * _LINE:.1f}">{_safe(line)}</text>'
        for i, line in enumerate(lines)
    ]
    if role is not None:
        y_role = first + (len(lines) - 0.05) * _LINE
        texts.append(f'<text class="cg-role" x="{x + w / 2:.1f}" y="{y_role:.1f}">{role}</text>')
    kind = f"cg-box cg-{role}" if role else "cg-box"
    return f'<g><title>{_safe(name)}</title><rect class="{kind}" {_frame(box)} rx="9"/>{"".join(texts)}</g>'


def _legend(
    links: Sequence[_Link], below: Sequence[str], left: float, right: float, top: float
) -> tuple[list[str], float]:
    parts, x, y = [], left, top
    for sample, words in _keys(links):
        width = 44 + _SMALL_LETTER * len(words) + 18 if sample else _SMALL_LETTER * len(words) + 18
        if x > left and x + width > right:
            x, y = left, y + 20
        parts.append(_key(sample, words, x, y))
        x += width
    for line in below:
        y += 19
        kind = "cg-text" if line.startswith(_MORE) else "cg-text cg-note"
        parts.append(f'<text class="{kind}" x="{left:.1f}" y="{y:.1f}">{_safe(line)}</text>')
    return parts, y


def _few(lines: Sequence[str]) -> list[str]:
    """The first six, and how many more there are."""
    return [*lines[:6], *([f"{_MORE}{len(lines) - 6} more"] if len(lines) > 6 else [])]


def _cut(line: str) -> str:
    return line if len(line) <= _NOTE else line[: _NOTE - 1] + "…"


def _keys(links: Sequence[_Link]) -> Iterator[tuple[_Link | None, str]]:
    kinds = {frozenset(link.ends) for link in links if not link.struck}
    plain = _Link("", "", ("-", "-"), None, contested=False)
    if frozenset({"-", ">"}) in kinds:
        yield replace(plain, ends=("-", ">")), "cause → effect"
    if frozenset({"-"}) in kinds:
        yield plain, "direction not settled"
    if frozenset({">"}) in kinds:
        yield replace(plain, ends=(">", ">")), "hidden common cause"
    if any("o" in kind for kind in kinds):
        yield replace(plain, ends=("o", "o")), "end not settled"
    if any(link.contested and not link.struck for link in links):
        yield replace(plain, contested=True), "contested by members"
    struck = [link.mark for link in links if link.struck and link.mark is not None]
    if struck:
        few = "needed" in struck[0]
        yield replace(plain, contested=True, struck=True), "too few support it" if few else "struck: too many opposed"
    marked = [link.mark for link in links if link.mark is not None]
    if marked:
        whose = "graph has" if "needed" in marked[0] else "evidence supports"
        yield None, f"8/10: members whose {whose} the link / members asked"
    if any(link.mark is None and link.share is not None for link in links):
        yield None, "0.97: share of the draws of the evidence in which the two are linked"


def _key(sample: _Link | None, words: str, x: float, y: float) -> str:
    text = f'<text class="cg-text" x="{x if sample is None else x + 44:.1f}" y="{y:.1f}">{words}</text>'
    if sample is None:
        return text
    middle = y - 4
    # The heads of the graph point up and down; here they are turned to lie flat.
    ends = "".join(
        f'<g transform="rotate(-90 {_numbers(at, middle)})">{_end(mark, at, middle, away)}</g>'
        for mark, at, away in ((sample.ends[0], x, 1), (sample.ends[1], x + 36, -1))
    )
    x0, x1 = x + _room(sample.ends[0]), x + 36 - _room(sample.ends[1])
    line = f'<path class="cg-line" d="M{_numbers(x0, middle)} L{_numbers(x1, middle)}"/>'
    return f"<g{_class(sample)}>{line}{ends}{text}</g>"


def _sentence(link: _Link) -> str:
    arrow = {"-": "—", ">": "→", "o": "—o"}[link.ends[1]]
    back = {"-": "", ">": "←", "o": "o"}[link.ends[0]]
    joint = {"←→": "↔", "←—": "←"}.get(back + arrow, back + arrow)
    words = f"{link.upper} {joint} {link.lower}"
    if link.struck:
        words = f"{link.upper} and {link.lower}: {'too few' if 'needed' in (link.mark or {}) else 'struck'}"
    if link.mark is not None:
        return f"{words} ({_tally(link.mark)})"
    return words if link.share is None else f"{words} ({_votes(link)} of the draws)"


def _contest(mark: Mapping[str, Any]) -> str:
    a, c, b = mark["nodes"]
    return f"{'Too few' if 'needed' in mark else 'Contested'}: {a} → {c} ← {b} ({_tally(mark)})"


def _tally(mark: Mapping[str, Any]) -> str:
    return f"{mark['support']} support, {mark['oppose']} oppose, {mark['abstain']} cannot tell"


def _votes(link: _Link) -> str:
    """The label of a link: its votes, else its share of the draws, else nothing."""
    if link.mark is None:
        return "" if link.share is None else f"{link.share:.2f}"
    return f"{link.mark['support']}/{link.mark['support'] + link.mark['oppose'] + link.mark['abstain']}"


def wrapped(name: str) -> list[str]:
    """`name` on one or two lines of at most 16 characters, broken where a word ends if it can be."""
    if len(name) <= 14:
        return [name]
    ends = [i + 1 for i, c in enumerate(name) if c in "_- ." and i + 1 <= 16 and len(name) - i - 1 <= 16]
    cut = min(ends, key=lambda i: abs(2 * i - len(name))) if ends else min(16, len(name))
    rest = name[cut:]
    return [name[:cut], *([] if not rest else [rest if len(rest) <= 16 else rest[:15] + "…"])]


def _breadth(line: str) -> float:
    """About the width of a bold line in pixels; the usual sans-serif faces stay below it."""
    wide = sum(8.0 + 6.0 * (c in _BROAD or east_asian_width(c) in "WF") + 2.0 * c.isupper() for c in line)
    return wide - 2.5 * sum(c in _NARROW for c in line) + 0.5 * len(line)


def _class(link: _Link) -> str:
    if link.struck:
        return ' class="cg-contested cg-struck"'
    return ' class="cg-contested"' if link.contested else ""


def _frame(box: _Rect) -> str:
    x, y, w, h = box
    return f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"'


def _numbers(*values: float) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _safe(text: str) -> str:
    """Escaped for XML; what XML cannot hold at all (control characters, lone surrogates) is made visible."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
