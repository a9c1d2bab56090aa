"""The demo's study under every attack in turn, three liars among twelve, and once with nobody lying.

For each: whether the interval covers the pooled estimate, and whether the one does that counts liars within the noise;
who was accused or put aside, and who was left out or weighed down in each round of training. The split, the liars and
the noise are those of the seed, the same for every attack. Where liars lie in nothing but the sums of an effect, the
study asks for one by sums, that of its first binary variable: the accused are then those by their sums too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causaldao.errors import MisuseError
from causaldao.simulations.attacks import ATTACKS
from causaldao.simulations.benchmarks.demo import line
from causaldao.simulations.federation import Setting, simulate
from causaldao.simulations.scenarios import load_study, load_table
from causaldao.study import Study

MEMBERS, LIARS = 12, 3
NONE = "none"
BY_SUMS = frozenset({"shift-sums"})
SHARED = tuple(name for name, one in ATTACKS.items() if not one.local)  # the demo pools evidence


def measure(*, seeds: int = 1, attacks: Sequence[str] = SHARED, scenario: str = "rand-hie") -> dict[str, Any]:
    """Every attack and the clean control, with the seeds 0 to ``seeds`` - 1, and what they come to."""
    study, table = load_study(Path(scenario), faulty=LIARS), load_table(scenario)
    runs = []
    for attack in (NONE, *attacks):
        sys.stderr.write(f"{attack}\n")
        for seed in range(seeds):
            setting = Setting(MEMBERS, 0 if attack == NONE else LIARS, "forge" if attack == NONE else attack, seed)
            with tempfile.TemporaryDirectory() as folder:
                result = simulate(_by_sums(study) if attack in BY_SUMS else study, table, Path(folder) / "run", setting)
            found = line(seed, result)
            (effect,) = result["effects"]
            found["accused"] = sorted({*found["accused"], *effect.get("accused", ())})
            low, high = effect["interval_with_liars"] or effect["interval"]
            within = low <= found["pooled"] <= high
            runs.append({"attack": attack, **found, "covers_with_liars": within, **_judged(result)})
    return {
        "scenario": scenario,
        "members": MEMBERS,
        "liars": LIARS,
        "seeds": seeds,
        "attacks": list(attacks),
        "runs": runs,
        "interval_covers_pooled": sum(run["covers"] for run in runs),
        "interval_with_liars_covers_pooled": sum(run["covers_with_liars"] for run in runs),
        "no_honest_accused": sum(set(run["accused"]) <= set(run["liars"]) for run in runs),
        "of": len(runs),
    }


def _by_sums(study: Study) -> Study:
    """The study with an effect on the same outcome that members answer by sums; a sixth of ε is for those."""
    value, outcome = study.to_json(), study.effects[0].outcome
    binary = [one.name for one in study.variables if one.kind == "binary" and one.name != outcome]
    if not binary:
        raise MisuseError(f"{study.name} has no binary variable besides {outcome!r}: leave out {', '.join(BY_SUMS)}.")
    value["effects"] = [{"treatment": binary[0], "outcome": outcome, "adjustment": [], "method": "aipw", "spread": 0.0}]
    value["privacy"]["split"] = {"evidence": 0.5, "training": 0.25, "evaluation": 0.08, "effects": 0.17}
    return Study.from_mapping(value)


def _judged(result: dict[str, Any]) -> dict[str, Any]:
    """Members that did not end well, by what became of them, and whom each round of training held back."""
    states = {member["status"] for member in result["members"]} - {"ok"}
    return {
        "members": {state: [m["name"] for m in result["members"] if m["status"] == state] for state in sorted(states)},
        "rounds": [
            {"round": entry["round"], "left_out": entry["excluded"], "weighed_down": entry.get("down_weighted", [])}
            for entry in result["rounds"]
        ],
    }
