"""Members who lack variables: what the pool of unlike sites claims, and what a liar gains by lacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from causaldao.ballots import cast, recheck
from causaldao.decisions import (
    among_holders,
    cautions,
    decide_adoption,
    decide_pool,
    decide_proposal,
    estimate_effects,
    require_held,
)
from causaldao.declared import Declaration, misplaced
from causaldao.errors import ConfigurationError, GuaranteeError, IdentityError, MisuseError
from causaldao.holdings import borne, discount, least
from causaldao.models.discovery.evidence import Evidence, partial
from causaldao.models.effects import average_effect
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import Knowledge
from causaldao.models.pattern import cpdag_of
from causaldao.pool import Pool, Settings, pool
from causaldao.study import Study
from tests.counts import count
from tests.simulations.lacking import LACKS, MEMBERS, NAMES, WEIGHTS, released, sites, study, tables

STUDY = study()
TRUTH = cpdag_of(CausalGraph.dag(list(WEIGHTS), tuple(NAMES)))
POPULATION = np.linalg.inv(np.eye(6) - np.array([[WEIGHTS.get((a, b), 0.0) for b in NAMES] for a in NAMES]))
COVARIANCE = POPULATION.T @ POPULATION


def _decided(evidence: Mapping[str, Evidence], lacks: Mapping[str, Sequence[str]], asked: Study = STUDY) -> Pool:
    declared = {name: Declaration(lacks=tuple(sorted(lacking))) for name, lacking in lacks.items()}
    return decide_pool(asked, evidence, len(evidence), declared)


def test_the_graph_of_lacking_members_is_another() -> None:
    """f = 2 of ten, so that each pair is had by seven: two liars, no more edges wrong than without lacks."""
    lacks = {MEMBERS[0]: ("c", "d"), MEMBERS[1]: ("c",), MEMBERS[2]: ("d",)}
    for seed in range(count(1, 40)):
        rng, asked = np.random.default_rng([seed, 12]), study(faulty=2, epsilon=20.0)
        data = tables(rng, lacks, 2000)
        for liar in (MEMBERS[0], MEMBERS[7]):
            data[liar] = data[liar].assign(e=-data[liar]["e"])
        decided = _decided(released(rng, asked, data, lacks), lacks, asked)
        assert decided.accused == (MEMBERS[0], MEMBERS[7])
        assert decide_proposal(asked, decided).pattern == TRUTH


def test_a_study_where_nobody_lacks_anything_is_pooled_otherwise() -> None:
    evidence = sites(np.random.default_rng(0), STUDY, {})
    asked, plain = _decided(evidence, dict.fromkeys(evidence, ())), _decided(evidence, {}, study(may_lack=()))
    assert asked.to_json() == plain.to_json()
    assert torch.equal(asked.evidence.moments, plain.evidence.moments)
    assert "lacks" not in plain.to_json()


@pytest.mark.parametrize(("epsilon", "faulty"), [(4.0, 1), (90.0, 1), (8.0, 0)])
def test_lacking_variables_change_the_graph(epsilon: float, faulty: int) -> None:
    """The graph is that of the study where everybody has everything, which is the true one."""
    asked = study(epsilon=epsilon, faulty=faulty)
    for seed in range(count(1, 20)):
        evidence = sites(np.random.default_rng(seed), asked, LACKS, 2000)
        assert decide_proposal(asked, _decided(evidence, LACKS, asked)).pattern == TRUTH
        whole = sites(np.random.default_rng(seed), asked, {}, 2000)
        assert decide_proposal(asked, _decided(whole, {}, asked)).pattern == TRUTH


def test_a_test_in_the_pool_of_unlike_sites_claims_too_much() -> None:
    """Of each partial correlation, over studies: as many beyond two-sided 5 % as chance allows, at most.

    Almost without noise, where moments of different members err most. The count of the worst entry alone would not do
    (`test_the_count_of_the_worst_entry_would_do`).
    """
    found = _standardised(count(20, 300))
    assert (np.sqrt((found**2).mean(axis=1)) < 1.0 + 3 / np.sqrt(2 * found.shape[1])).all()


def test_the_count_of_the_worst_entry_would_do() -> None:
    found = _standardised(count(20, 300), naive=True)
    assert np.sqrt((found**2).mean(axis=1)).max() > 1.5


_DRAWN: dict[tuple[int, bool], Any] = {}


def _standardised(studies: int, *, naive: bool = False) -> Any:
    """(tests, studies): errors of Fisher's z in the standard errors that the pool claims, means off the centre."""
    if (studies, naive) not in _DRAWN:
        rng, nobody_whole = np.random.default_rng(1), {name: "cdf"[k % 3] for k, name in enumerate(MEMBERS)}
        mean, root = np.full(6, 1.5), np.linalg.cholesky(COVARIANCE)
        exact = np.block([[np.ones((1, 1)), mean[None]], [mean[:, None], COVARIANCE + np.outer(mean, mean)]])
        truth = Evidence(tuple(NAMES), torch.from_numpy(exact * 1e9))
        tests = [(a, b, [c for c in NAMES if c not in (a, b)][: k * 4]) for a in NAMES for b in NAMES if a < b
                 for k in (0, 1)]  # fmt: skip
        rows: dict[bool, list[list[float]]] = {False: [], True: []}
        for _ in range(studies):
            evidence = {}
            for name in MEMBERS:
                x = np.concatenate([np.ones((400, 1)), rng.normal(size=(400, 6)) @ root.T + mean], axis=1)
                x[:, [1 + NAMES.index(v) for v in nobody_whole[name]]] = 0.0
                evidence[name] = Evidence(tuple(NAMES), torch.from_numpy(x.T @ x), 1e-3)
            pooled = pool(evidence, Settings(0, rule="mean"), nobody_whole).evidence
            worst = replace(pooled, moments=pooled.moments / pooled.count * 3 * 400)
            for key, one in ((False, pooled), (True, worst)):
                rows[key].append([_error(one, truth, *test) for test in tests])
        for key, values in rows.items():
            _DRAWN[studies, key] = np.array(values).T
    return _DRAWN[studies, naive]


def _error(own: Evidence, truth: Evidence, a: str, b: str, given: list[str]) -> float:
    test = partial(own, a, b, given)
    return (test.z - partial(truth, a, b, given).z) / test.standard_error


def test_an_effect_of_those_who_have_its_variables_does_not_cover() -> None:
    asked, inside, total = study(epsilon=8.0), 0, count(12, 400)
    for seed in range(total):
        evidence = sites(np.random.default_rng([seed, 2]), asked, LACKS, 1000)
        decided = _decided(evidence, LACKS, asked)
        among = among_holders(asked, evidence, decided.kept, decided.faulty, decided.lacks)
        assert among is not None
        low, high = average_effect(among("dea"), "d", "e", ("a",)).interval
        inside += low < 0.5 < high
    assert inside >= total * 0.95 - 3 * (total * 0.05 * 0.95) ** 0.5


def test_an_effect_that_everybody_can_answer_is_read_from_fewer_records() -> None:
    evidence = sites(np.random.default_rng(3), STUDY, LACKS)
    decided = _decided(evidence, LACKS)
    among = among_holders(STUDY, evidence, decided.kept, decided.faulty, decided.lacks)
    assert among is not None
    assert decided.evidence.count < among("de").count < among("ab").count
    assert among("ab").count > 8500


def test_a_zero_that_follows_from_the_graph_needs_holders() -> None:
    """e causes d in no graph of the class, and d, a parent of e, leaves no estimate: nobody need have it."""
    asked = study(effects=[{"treatment": "e", "outcome": "d"}, {"treatment": "d", "outcome": "c", "adjustment": []}])
    evidence = sites(np.random.default_rng(3), asked, LACKS)
    decided = _decided(evidence, LACKS, asked)
    proposal = decide_proposal(asked, decided)
    consensus = decide_adoption(asked, proposal, {name: cast(proposal, evidence[name]) for name in MEMBERS[5:]}, 5)
    among = among_holders(asked, evidence, MEMBERS[1:4], 1, LACKS)  # one has d, nobody c and d
    zero, unanswered = estimate_effects(asked, decided.evidence, consensus, decided.bounds, among)
    assert (zero["estimate"], zero["graph_implies_zero"]) == (0.0, True)
    assert unanswered["no_answer"] == "guarantee"


def test_too_few_who_have_an_effect_answer_it() -> None:
    evidence = sites(np.random.default_rng(3), STUDY, LACKS)
    among = among_holders(STUDY, evidence, (MEMBERS[0], MEMBERS[3], MEMBERS[5]), 1, LACKS)
    assert among is not None
    with pytest.raises(GuaranteeError, match="1 of the pooled members have all of c, d"):
        among("cd")


def test_honest_members_who_lack_are_accused() -> None:
    """At family-wise level .05 an accusation of anyone may come in one study of twenty, not more."""
    studies, level, accused = count(12, 600), 0.05, 0
    asked = study(epsilon=4.0, consensus={"faulty": 1, "level": level})
    for seed in range(studies):
        found = _decided(sites(np.random.default_rng([seed, 4]), asked, LACKS, 500), LACKS, asked)
        accused += bool(found.accused)
    assert accused <= binom.ppf(0.9999, studies, level)


@pytest.mark.parametrize("liar", [MEMBERS[0], MEMBERS[6]])
def test_a_liar_hides_among_those_who_lack(liar: str) -> None:
    rng = np.random.default_rng(5)
    data = tables(rng, LACKS)
    data[liar] = data[liar].assign(e=-data[liar]["e"])
    decided = _decided(released(rng, STUDY, data, LACKS), LACKS)
    assert decided.accused == (liar,)
    assert liar in decided.excluded


def test_a_lie_in_what_few_have_is_pooled() -> None:
    """Only the five who have both judge this entry, and they do."""
    rng = np.random.default_rng(6)
    evidence = sites(rng, STUDY, LACKS)
    moments = evidence[MEMBERS[9]].moments.clone()
    moments[3, 4] = moments[4, 3] = -0.9 * (moments[3, 3] * moments[4, 4]) ** 0.5
    found = _decided({**evidence, MEMBERS[9]: replace(evidence[MEMBERS[9]], moments=moments)}, LACKS)
    assert found.accused == (MEMBERS[9],)
    assert MEMBERS[9] not in found.kept


def test_who_says_that_it_lacks_a_variable_moves_it() -> None:
    """A liar that lacks c has no part in c: those entries are as if it were absent, whatever it sends there."""
    evidence = sites(np.random.default_rng(7), STUDY, {})
    liar = MEMBERS[4]
    forged = evidence[liar].moments.clone()
    forged[3], forged[:, 3] = 1e3, 1e3
    settings = Settings(0, rule="mean", rows=(50, 5000))
    lying = pool({**evidence, liar: replace(evidence[liar], moments=forged)}, settings, {liar: ("c",)})
    absent = pool({name: one for name, one in evidence.items() if name != liar}, settings)
    per_record = (one.evidence.moments / one.evidence.count for one in (lying, absent))
    with_liar, without = (moments[3] for moments in per_record)
    assert torch.allclose(with_liar, without, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("noise", [1e-3, 5.0])
def test_a_liar_that_says_it_lacks_takes_more_from_the_pool_than_itself(noise: float) -> None:
    """Almost without noise moments of different members err most; then the pool is of those who lack nothing."""
    rng, evidence = np.random.default_rng(13), {}
    for name in MEMBERS:
        x = np.concatenate([np.ones((1000, 1)), rng.uniform(0.4, 1, size=(1000, 6))], axis=1)
        evidence[name] = Evidence(tuple(NAMES), torch.from_numpy(x.T @ x), noise)
    liar, settings = MEMBERS[3], Settings(0, rows=(50, 5000))
    found = pool(evidence, settings, {liar: ("c",)})
    absent = pool({name: one for name, one in evidence.items() if name != liar}, settings).evidence
    assert absent.count / 1.25 <= found.evidence.count <= absent.count * (1 + 1e-9)
    assert found.evidence.noise / found.evidence.count >= absent.noise / absent.count * (1 - 1e-9)
    assert (liar in found.used) == (noise > 1)
    if noise < 1:
        assert torch.allclose(found.evidence.moments, absent.moments, rtol=1e-12)


def test_the_only_one_who_has_a_variable_deviates_from_nobody() -> None:
    evidence = sites(np.random.default_rng(14), STUDY, {})
    lacks = dict.fromkeys(MEMBERS[1:], ("c",))
    blank = {name: _without(evidence[name], names) for name, names in lacks.items()}
    found = pool({**evidence, **blank}, Settings(0, rule="mean", rows=(50, 5000)), lacks)
    assert max(found.deviations.values()) < found.critical
    own, pooled = evidence[MEMBERS[0]], found.evidence
    assert torch.allclose(pooled.moments[3] / pooled.count, own.moments[3] / own.count)


def test_who_shares_nothing_with_anybody_comes_near() -> None:
    """Sites that lack all of each other's variables are as far apart as any two are, so withholding gains no place."""
    evidence = sites(np.random.default_rng(8), STUDY, {})
    lacks = {MEMBERS[0]: tuple("abcde"), MEMBERS[1]: tuple("bcdef")}
    blank = {name: _without(evidence[name], names) for name, names in lacks.items()}
    found = pool({**evidence, **blank}, Settings(2, rows=(50, 5000)), lacks)
    assert all(np.isfinite(value) for value in found.distances.values())
    assert found.accused == ()


def _without(one: Evidence, names: Sequence[str]) -> Evidence:
    moments = one.moments.clone()
    for name in names:
        moments[one.index(name) + 1] = moments[:, one.index(name) + 1] = 0.0
    return replace(one, moments=moments)


def test_members_that_everybody_needs_are_too_few_and_evidence_is_asked() -> None:
    lacks = dict.fromkeys(MEMBERS[:6], ("c",))
    with pytest.raises(
        GuaranteeError, match=r"10 members that answered have c: 4. It takes 5 for faulty = 1"
    ) as caught:
        require_held(STUDY, lacks, MEMBERS, 10)
    assert caught.value.exit_code == 13
    disjoint = {**dict.fromkeys(MEMBERS[:3], ("c",)), **dict.fromkeys(MEMBERS[3:6], ("d",))}
    with pytest.raises(GuaranteeError, match="c with d: 4"):
        require_held(STUDY, disjoint, MEMBERS, 10)
    assert require_held(STUDY, LACKS, MEMBERS, 10) == 1
    with pytest.raises(GuaranteeError, match=r"c: 0; d: 0"):
        require_held(STUDY, dict.fromkeys(MEMBERS, ("c", "d")), MEMBERS, 10)


def test_an_effect_that_too_few_can_answer_is_asked_all_the_same() -> None:
    asked = study(effects=[{"treatment": "b", "outcome": "e", "adjustment": ["c", "d", "f"]}], may_lack="cdf")
    lacks = dict(zip(MEMBERS, [("c",), ("c",), ("d",), ("d",), ("f",), ("f",)], strict=False))
    with pytest.raises(GuaranteeError, match="c with d with f: 4"):
        require_held(asked, lacks, MEMBERS, 10)
    assert require_held(study(may_lack="cdf"), lacks, MEMBERS, 10) == 1


@pytest.mark.parametrize("faulty", range(6))
def test_silent_members_stall_a_study_that_had_enough(faulty: int) -> None:
    """Whoever is silent is one of the f: with the least holders, any f of them may be."""
    members = [f"m{k:02}" for k in range(30)]
    needed = least("multi-krum", faulty)
    lacks = dict.fromkeys(members[needed:], ("c",))
    for silent in range(faulty + 1):
        left = borne("multi-krum", lacks, members[silent:], 30, faulty)
        assert left == faulty - silent
        assert needed - silent - 2 * left >= left + 1  # what rank and accusation leave is more than may lie
    with pytest.raises(GuaranteeError):
        borne("multi-krum", lacks, members[faulty + 1 :], 30, faulty)


def test_a_study_whose_variables_all_have_needs_more_members_for_its_questions() -> None:
    """9 members bear f = 3 (2f + 3), as they did before anybody could lack anything; 3f + 1 is for what some lack."""
    asked = study(faulty=3, may_lack=(), effects=[{"treatment": "a", "outcome": "f", "adjustment": ["b"]}])
    assert require_held(asked, {}, MEMBERS[:9], 9) == 3
    assert require_held(asked, {}, MEMBERS[:9], 10) == 3
    drawn = np.random.default_rng(0)
    found = decide_pool(asked, sites(drawn, asked, {}, rows=300), 10)
    nine = {name: one for name, one in sites(drawn, asked, {}, rows=300).items() if name != MEMBERS[9]}
    assert (found.faulty, decide_pool(asked, nine, 10).faulty, decide_pool(asked, nine, 9).faulty) == (3, 3, 3)


def test_the_rule_leaves_a_pair_to_those_who_may_lie() -> None:
    evidence = sites(np.random.default_rng(9), STUDY, LACKS)
    lacks = {**LACKS, MEMBERS[5]: ("c",)}
    with pytest.raises(GuaranteeError, match="4 members have c and d and are left to pool, and it takes 5"):
        pool(evidence, Settings(1), lacks)
    with pytest.raises(MisuseError, match="sieve"):
        pool(evidence, Settings(1, rule="sieve"), LACKS)


def test_a_pool_without_lacks_is_discounted() -> None:
    centre = torch.eye(4, dtype=torch.float64)
    shares = torch.full((5, 9), 0.2, dtype=torch.float64)
    counts, noise = torch.full((5,), 100.0, dtype=torch.float64), torch.full((5,), 0.1, dtype=torch.float64)
    whole = (500.0, 0.1 / 5**0.5)
    assert discount(centre, shares, counts, noise, whole) == pytest.approx(1.0, abs=1e-6)
    shares[:, 4] = torch.tensor([1.0, 0, 0, 0, 0])  # one entry from one member alone
    assert discount(centre, shares, counts, noise, whole) == pytest.approx(5.0, rel=1e-6)


def test_a_ballot_rests_on_what_its_voter_lacks() -> None:
    evidence = sites(np.random.default_rng(10), STUDY, LACKS)
    proposal = decide_proposal(STUDY, _decided(evidence, LACKS))
    own, lacks = evidence[MEMBERS[2]], LACKS[MEMBERS[2]]
    ballot = cast(proposal, own, lacks=lacks)
    touched = {m.key for m in proposal.marks if {*m.ends, *m.given} & set(lacks)}
    assert touched
    assert all(ballot.votes[key] == 0 for key in touched)
    assert {ballot.votes[m.key] for m in proposal.marks if m.key not in touched} == {1}
    assert recheck(ballot, proposal, own, 0.01, lacks=lacks) == ()
    key = sorted(touched)[0]
    lie = replace(ballot, votes={**ballot.votes, key: -1})
    assert recheck(lie, proposal, own, 0.01, lacks=lacks) == (key,)
    a, b = next(m.ends for m in proposal.marks if m.key in touched and m.kind == "adjacency")
    knowing = cast(proposal, own, Knowledge(required=frozenset({(a, b)})), lacks=lacks)
    assert knowing.votes[f"{a} - {b}"] == 1


def test_moments_of_what_a_member_lacks_are_taken() -> None:
    evidence = sites(np.random.default_rng(11), STUDY, LACKS)
    assert misplaced(evidence[MEMBERS[2]], ("c", "d")) == ()
    assert misplaced(evidence[MEMBERS[3]], ("c", "d")) == ("c",)


@pytest.mark.parametrize("said", [["c", "c"], ["d", "c"], ["a"], "c", [["c"]], [1], None])
def test_a_declaration_that_the_study_does_not_allow(said: Any) -> None:
    with pytest.raises(IdentityError):
        Declaration.from_json(STUDY, {"lacks": said})


def test_a_member_that_lacks_everything_takes_part() -> None:
    with pytest.raises(IdentityError, match="no part"):
        Declaration.from_json(study(may_lack=NAMES), {"lacks": list(NAMES)})


@pytest.mark.parametrize(("changes", "fault"), [
    ({"aggregation": {"pool": "sieve"}}, "sieve"),
    ({"discovery": {"clip": 3.0}}, "clip"),
    ({"members": {"may_lack": ["c", "c"]}}, "named twice"),
    ({"members": {"may_lack": ["z"]}}, "not among the variables"),
    ({"variables": [{"name": f"v{k}", "kind": "continuous", "bounds": [0, 1]} for k in range(61)],
      "members": {"may_lack": ["v1"]}, "effects": []}, "60 variables at most"),
])  # fmt: skip
def test_a_study_whose_members_cannot_lack_is_valid(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        study(**changes)
    assert any(fault in problem for problem in caught.value.problems)


def test_a_study_whose_members_lack_nothing_has_another_hash() -> None:
    plain = study(may_lack=())
    assert "may_lack" not in plain.to_json()["members"]
    assert plain.hash == study(members={"n_min": 50, "n_max": 5000, "deadline": 60.0}).hash != STUDY.hash
    assert Study.from_mapping(STUDY.to_json()).hash == study(may_lack=("d", "c")).hash == STUDY.hash


def test_a_study_does_not_say_how_many_must_have_a_variable() -> None:
    (told,) = cautions(study(faulty=3))
    assert "had by 10 of the members" in told
    assert "have 13" in told
    assert cautions(study(faulty=1, may_lack=())) == ()
