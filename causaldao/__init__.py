"""CausalDAO: institutions that may not share rows learn together what causes what.

Importing this package is free: public names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CausalDAO": "causaldao.simulations.notebook",
    "FederatedClient": "causaldao.simulations.notebook",
    "CausalGraph": "causaldao.models.graph",
    "CausalRule": "causaldao.models.rules",
    "CausalRuleSet": "causaldao.models.rules",
    "Knowledge": "causaldao.models.knowledge",
    "Evidence": "causaldao.models.discovery.evidence",
    "discover": "causaldao.models.discovery",
    "bootstrap": "causaldao.models.discovery.bootstrap",
    "causal_consistency": "causaldao.models.consistency",
    "check_rules": "causaldao.models.rule_checks",
    "explain": "causaldao.models.discovery.explain",
    "effect": "causaldao.models.effects",
    "estimate_effect": "causaldao.models.estimation",
    "federated_effect": "causaldao.simulations.effects",
    "identify": "causaldao.models.identification",
    "refute": "causaldao.models.refute",
    "LinearSCM": "causaldao.models.scm",
    "NeuralSCM": "causaldao.models.scm",
    "Study": "causaldao.study",
    "aggregate": "causaldao.aggregation",
    "audit": "causaldao.audit",
}

__all__ = ["__version__"]
__all__.extend(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'causaldao' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")
    value = getattr(import_module(_PUBLIC[name]), "average_effect" if name == "effect" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
