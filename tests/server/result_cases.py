"""A result as a run writes it, for what is drawn and written from it."""

from __future__ import annotations

from typing import Any

from causaldao.models.graph import CausalGraph
from causaldao.pictures import svg as picture

HOSTILE = "<script>alert('x')</script>\"&"
SVG = "{http://www.w3.org/2000/svg}"

DIRECTED = [
    ("log_coinsurance", "visits"),
    ("log_max_expenditure", "visits"),
    ("chronic_diseases", "visits"),
    ("physical_limitation", "visits"),
    ("chronic_diseases", "physical_limitation"),
    ("health_poor", "visits"),
]
UNDIRECTED = [
    ("log_coinsurance", "deductible_plan"),
    ("log_coinsurance", "log_max_expenditure"),
    ("health_poor", "chronic_diseases"),
]
NODES = (
    "visits",
    "log_coinsurance",
    "deductible_plan",
    "log_incentive",
    "log_max_expenditure",
    "physical_limitation",
    "chronic_diseases",
    "health_poor",
)


def a_pattern() -> CausalGraph:
    return CausalGraph.cpdag(directed=DIRECTED, undirected=UNDIRECTED, nodes=NODES)


def a_mark(*nodes: str, support: int = 8, oppose: int = 0, status: str = "adopted") -> dict[str, Any]:
    return {
        "kind": "adjacency" if len(nodes) == 2 else "collider",
        "nodes": list(nodes),
        "support": support,
        "oppose": oppose,
        "abstain": 10 - support - oppose,
        "status": status,
    }


def a_result() -> dict[str, Any]:
    names = [f"clinic-{i}" for i in range(10)]
    liars = names[8:]
    kept = names[:8]
    marks = [a_mark(*pair, support=5 + i % 6) for i, pair in enumerate(DIRECTED + UNDIRECTED)]
    marks.append(a_mark("deductible_plan", "log_incentive", support=2, oppose=6, status="contested"))
    marks.append(a_mark("log_coinsurance", "visits", "chronic_diseases", support=9))
    marks.append(a_mark("log_coinsurance", "visits", "health_poor", support=3, oppose=5, status="contested"))
    members = [
        {
            "name": name,
            "noisy_count": 3894.0 - 300 * i,
            "status": "accused" if name in liars else "ok",
            "reason": "distance 41.3 is beyond 3.1, the test's bound at .05/10" if name in liars else "",
        }
        for i, name in enumerate(names)
    ]
    return {
        "study": {
            "name": "rand-hie",
            "hash": "9f" * 32,
            "question": "Do patients who pay more themselves see a doctor less often?",
            "purpose": "health services research",
        },
        "members": members,
        "simulation": {"seed": 0, "liars": liars, "noise": "simulated", "attack": "mimic"},
        "graph": {"pattern": a_pattern().to_json(), "dag": {}},
        "marks": marks,
        "contested": [mark for mark in marks if mark["status"] == "contested"],
        "effects": [
            {
                "treatment": "log_coinsurance",
                "outcome": "visits",
                "adjustment": [],
                "estimate": -0.04412,
                "standard_error": 0.00713,
                "sampling_error": 0.00302,
                "privacy_error": 0.00646,
                "interval": [-0.05809, -0.03014],
                "unit": "log(1 + visits)",
                "pooled": -0.0432577,
            }
        ],
        "privacy": {
            "unit": "one record",
            "adjacency": "add or remove one record",
            "epsilon": 3.0,
            "delta": 1e-6,
            "split": {"evidence": 0.5, "training": 0.4, "evaluation": 0.1},
            "spent": {name: 2.87 if name in kept else 1.5 for name in names},
        },
        "ledger": {"size": 87, "root": "3c" * 32, "cosigners": []},
        "rounds": [
            {
                "round": i,
                "loss": 0.5 + 0.4 / i,
                "rule": "arc+caf",
                "excluded": liars[: i % 3],
                "kept": kept,
                "down_weighted": kept[: i % 2],
                "weights": {name: 0.03 if name in kept[: i % 2] else 0.13 for name in kept},
            }
            for i in range(1, 11)
        ],
        "pool": {
            "rule": "multi-krum",
            "kept": kept,
            "excluded": [],
            "accused": liars,
            "distances": {name: 41.3 if name in liars else 1.1 for name in names},
            "weights": {name: 0.125 if name in kept else 0.0 for name in names},
        },
        "seconds": {"evidence": 3.2, "ballots": 0.8, "training": 12.4, "evaluate": 0.6},
    }


def a_graph(result: dict[str, Any]) -> str:
    return picture.draw(a_pattern(), result["marks"], treatment="log_coinsurance", outcome="visits")
