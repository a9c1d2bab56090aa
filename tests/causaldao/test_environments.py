"""Environments: an honest site under other conditions is neither accused nor averaged away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from causaldao.ballots import cast, propose, recheck
from causaldao.environments import centred, pool_environments
from causaldao.errors import GuaranteeError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.knowledge import NONE
from causaldao.pool import Settings, pool

PLACES = {f"site-{k}": "treated" if k >= 5 else "plain" for k in range(10)}


def _sites(rng: np.random.Generator, n: int = 1000) -> dict[str, Evidence]:
    """a -> b -> c; where treated, b is shifted and its noise small: another mean and strength, the same edges."""
    found = {}
    for name, place in PLACES.items():
        a = rng.normal(size=n)
        b = 0.7 * a + rng.normal(size=n) if place == "plain" else 2 + 0.3 * a + 0.5 * rng.normal(size=n)
        c = 0.7 * b + rng.normal(size=n)
        x = np.stack([np.ones(n), a / 4, b / 6, c / 6], axis=1)
        found[name] = Evidence(("a", "b", "c"), torch.from_numpy(x.T @ x))
    return found


def test_an_honest_site_under_other_conditions_is_accused() -> None:
    evidence = _sites(np.random.default_rng(0))
    assert pool(evidence, Settings(1)).accused
    found = pool_environments(evidence, PLACES, Settings(1))
    assert [each.accused for each in found.pools.values()] == [(), ()]
    skeleton = propose(found.evidence, "boss", NONE, seed=0).pattern.skeleton()
    assert skeleton == {("a", "b"), ("b", "c")}


def test_a_liar_hides_in_its_environment() -> None:
    evidence = _sites(np.random.default_rng(1))
    moments = evidence["site-7"].moments.clone()
    moments[1, 3] = moments[3, 1] = moments[1, 3] - 40
    evidence["site-7"] = replace(evidence["site-7"], moments=moments)
    assert pool_environments(evidence, PLACES, Settings(1)).pools["treated"].accused == ("site-7",)


def test_means_that_differ_become_an_edge() -> None:
    """The shift of one variable between two environments leaves no trace in what is put together."""
    evidence = _sites(np.random.default_rng(2))
    together = pool_environments(evidence, PLACES, Settings(0, "mean")).evidence
    exact = sum(
        (centred(pool({n: e for n, e in evidence.items() if PLACES[n] == place}, Settings(0, "mean")).evidence).moments)
        for place in ("plain", "treated")
    )
    torch.testing.assert_close(together.moments, exact)
    assert float(together.moments[0, 1:].abs().max()) == 0


def test_all_liars_declare_a_small_environment() -> None:
    evidence = _sites(np.random.default_rng(3))
    few = {**PLACES, "site-9": "alone"}
    with pytest.raises(GuaranteeError, match="environment 'alone' is compared only within itself"):
        pool_environments(evidence, few, Settings(1))
    with pytest.raises(MisuseError, match="site-9 declared no environment"):
        pool_environments(evidence, {n: p for n, p in PLACES.items() if n != "site-9"}, Settings(1))


def test_a_declared_target_is_held_against_its_edge() -> None:
    """Conditions act on b: weaker edges there are no contradiction, at other variables they are."""
    evidence = _sites(np.random.default_rng(4))
    plain = pool({name: e for name, e in evidence.items() if PLACES[name] == "plain"}, Settings(1)).evidence
    proposal = propose(plain, "boss", NONE, seed=0)
    own = evidence["site-8"]
    weak = Evidence(own.names, 0.99 * torch.diag(own.moments.diagonal()) + 0.01 * own.moments)
    weak.moments[0] = weak.moments[:, 0] = torch.tensor([own.count, 0, 0, 0])
    honest, excused = cast(proposal, weak), cast(proposal, weak, targets=("b",))
    assert set(honest.votes.values()) == {-1}
    assert set(excused.votes.values()) == {0}
    assert set(cast(proposal, weak, targets=("a",)).votes.values()) == {-1, 0}
    assert recheck(excused, proposal, weak, 0.01, targets=("b",)) == ()
    assert recheck(excused, proposal, weak, 0.01) != ()
