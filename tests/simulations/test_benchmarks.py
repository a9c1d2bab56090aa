"""The benchmarks run and measure what they say; no speed is asserted."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from causaldao.errors import MisuseError
from causaldao.simulations.benchmarks import aggregation, byzfl, causal_unit, discovery, run, wide_fit
from causaldao.simulations.benchmarks.attacks import SHARED
from causaldao.simulations.benchmarks.demo import VARIANTS
from causaldao.simulations.benchmarks.ledger import file_system
from causaldao.simulations.benchmarks.scale import descendants
from tests.counts import count


def test_the_engine_is_measured_without_its_peer() -> None:
    found = run("engine", members=6, parameters=1000, repeats=1)
    assert (found["benchmark"], found["members"], found["parameters"]) == ("engine", 6, 1000)
    assert found["message"]["ratio"] == pytest.approx(found["message"]["ms"] / found["message"]["bare_flower_ms"])
    assert set(found["round"]["parts"]) == {"ballots", "updates", "adopt", "aggregate", "ledger"}
    assert found["round"]["seconds"] == pytest.approx(sum(found["round"]["parts"].values()))
    assert found["first_round"]["seconds"] > 0


def test_the_demo_hides_what_the_mean_does() -> None:
    found = run("demo", seeds=1)
    assert set(VARIANTS) <= set(found)
    assert (found["rule"]["negative"], found["mean"]["negative"]) == (1, 0)
    assert found["rule"]["accused_are_the_liars"] == 1
    assert found["quiet"]["moved_most"] <= found["quiet"]["runs"][0]["bound"]


def test_an_attack_leads_the_demo_astray_or_casts_blame_on_the_honest() -> None:
    tried = SHARED if count(0, 1) else ("foe-optimised",)
    found = run("attacks", attacks=tried)
    assert found["of"] == len(tried) + 1
    # Those two stay within the noise of one site, so that nobody can find them: only the stated bound holds.
    within = ("quiet", "collude")
    assert [run["attack"] for run in found["runs"] if not run["covers"] and run["attack"] not in within] == []
    assert [run["attack"] for run in found["runs"] if not run["covers_with_liars"]] == []
    assert [run["attack"] for run in found["runs"] if not set(run["accused"]) <= set(run["liars"])] == []
    control, *attacked = found["runs"]
    assert (control["attack"], control["liars"], control["accused"]) == ("none", [], [])
    for run_ in attacked:
        assert len(run_["liars"]) == 3
        assert [entry["round"] for entry in run_["rounds"]] == [entry["round"] for entry in control["rounds"]]


def test_the_scale_forgets_a_process() -> None:
    found = run("scale", members=5, engines=("inline",))
    assert (found["members"], found["rows"], set(found) & {"inline", "ray"}) == (5, 1000, {"inline"})
    inline = found["inline"]
    assert inline["seconds"] > inline["study_seconds"] == pytest.approx(sum(inline["phases"].values()))
    assert inline["peak_mib"] > 50
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert {os.getpid(), child.pid} <= set(descendants(os.getpid())) or not Path("/proc").exists()
    finally:
        child.kill()
        child.wait()


def test_a_large_ledger_is_not_verified_or_its_receipt_is_too_large(capfd: pytest.CaptureFixture[str]) -> None:
    found = run("ledger", entries=2000, repeats=1)
    assert set(found["appends"]) == {"1", "32", "256"}
    assert all(number > 0 for appends in found["appends"].values() for number in appends.values())
    verified = found["verify"]
    assert (verified["size"], verified["cosigners"]) == (2000, 20)
    assert verified["seconds"] == pytest.approx(verified["signatures_seconds"] + verified["bytes_chain_tree_seconds"])
    assert 0 < verified["peak_mib"] <= verified["peak_mib_all_processes"] or not Path("/proc").exists()
    assert found["receipt"]["bytes"] <= 4096
    assert " of 2000 signatures" in capfd.readouterr().err


def test_a_rule_is_measured_without_its_peer_or_a_peer_that_cannot_is_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    limit = 200 << 20 if Path("/proc").exists() else 0  # byzfl's mixtures take 80 times the 8 MiB of the matrix
    monkeypatch.setattr(aggregation, "_memory", lambda: limit)
    rules = ("coordinate-median", "multi-krum", "nnm+mean")
    (cell,) = run("aggregation", sizes=((100, 20_000),), rules=rules, threads=(1,), repeats=1)["cells"]
    assert (cell["n"], cell["d"], cell["faulty"], cell["threads"]) == (100, 20_000, 20, 1)
    found = [cell["rules"][rule] for rule in rules]
    peers = [{"byzfl", "flwr"}, {"byzfl", "flwr", "flwr_serverapp"}, {"byzfl"}]
    assert [set(ours) & {"byzfl", "flwr", "flwr_serverapp"} for ours in found] == peers
    assert all(min(ours["ms"], ours["reads"]) > 0 for ours in found)
    assert all(ours[peer]["ratio"] > 0 for ours, there in zip(found[:2], peers, strict=False) for peer in there)
    assert all(ours["extra_mib"] is None or ours["extra_share"] >= 0 for ours in found)
    assert not limit or "allocate" in found[2]["byzfl"]["skipped"]
    assert "coordinate-median: " in capfd.readouterr().err


def test_a_peer_that_never_ends_or_takes_the_process_with_it_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aggregation, "CALL", 0.0)
    cell = aggregation._Cell(5, 100, 1, "cpu", 1, ends=float("inf"))
    cell.setting["rules"] = ["mean"]
    try:
        assert cell._first("byzfl", "mean") == {"failed": "did not end within 0 s"}
        monkeypatch.undo()
        assert cell._first("ours", "mean")["ms"] > 0
        cell._running().process.kill()
        cell._running().process.wait()
        assert cell._first("byzfl", "mean")["failed"].startswith("the process ended")
        assert aggregation._Cell(5, 100, 1, "cpu", 1, ends=0)._first("byzfl", "mean")["failed"].startswith("not tried")
    finally:
        cell._stop()


def test_byzfl_is_not_installed_and_its_column_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byzfl, "load", lambda: None)
    cell = aggregation._Cell(5, 1000, 1, "cpu", 1, ends=float("inf"))
    found = cell.run(("coordinate-median",))["rules"]["coordinate-median"]
    assert byzfl.installed() == found["byzfl"]["skipped"] == "not installed: pip install --no-deps byzfl==0.0.11"


def test_aggregation_is_measured_on_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MisuseError, match="sees no CUDA device"):
        run("aggregation", device="cuda")


def test_the_unit_is_measured_without_its_guesses_its_published_figures_or_a_word_of_progress(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(causal_unit, "NOISE", (0.5,))
    variants = ("full", "no-cut", "head-alone")
    options = {"rows": 200, "held_rows": 50, "steps": 60, "repeats": 3}
    found = run("causal-unit", seeds=2, graphs=("fork",), variants=variants, **options)
    fork = found["graphs"]["fork"]
    assert set(fork) == {"learned", "untrained", "constant", "published"}
    for scores in (fork["learned"], fork["untrained"], fork["constant"]):
        low, high = scores["skeleton_f1"]["interval"]
        assert low <= scores["skeleton_f1"]["mean"] <= high
    assert set(found["ablations"]) == {"of", *variants}
    assert found["ablations"]["head-alone"]["r2_change"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["ablations"]["full"] != found["ablations"]["no-cut"]
    assert (set(found["multi"]), set(found["noise"]), set(found["forward"])) == (
        set("1234"),
        {"0.5"},
        {"1", "64", "1024"},
    )
    for times in found["forward"].values():
        assert times["parameters"] <= min(times["mlp_parameters"], times["deep_mlp_parameters"])
    assert len(found["aims"]) == 3 + 3 * 3
    change, cut = found["ablations"]["no-cut"]["change"], found["ablations"]["no-cut"]["beyond_error"]
    assert found["ablations"]["full"]["beyond_error"] == []
    assert all((key in cut) == (one["interval"][0] * one["interval"][1] > 0) for key, one in change.items())
    assert "fork, full, noise 1, seed 1" in capfd.readouterr().err
    with pytest.raises(MisuseError, match="no graph ring; choose among chain"):
        run("causal-unit", graphs=("ring",))
    with pytest.raises(MisuseError, match="at least 2"):
        run("causal-unit", seeds=1)


def test_two_of_the_five_graphs_are_the_same() -> None:
    adjacencies = []
    for edges in causal_unit.GRAPHS.values():
        adjacency = torch.zeros(6, 6)
        adjacency[tuple(torch.tensor(edges).T)] = 1
        adjacencies.append(adjacency)
    assert all(causal_unit.structure(a, b)["shd"] > 0 for a in adjacencies for b in adjacencies if a is not b)


def test_a_reversed_edge_is_right_or_a_missing_one_is_counted_twice() -> None:
    true = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 0, 0]])
    found = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 1, 0]])  # 0 -> 1 right, 0 -> 2 missing, 2 -> 1 too many
    # the classes: 0 -> 1 <- 2 keeps its directions, and of the fork 1 <- 0 -> 2 none is known
    expected = {"skeleton_f1": 0.5, "directed_f1": 0.5, "shd": 2, "class_f1": 0, "class_shd": 3}
    assert causal_unit.structure(found, true) == expected
    turned = causal_unit.structure(true.T, true)  # a collider
    assert turned == {"skeleton_f1": 1, "directed_f1": 0, "shd": 2, "class_f1": 0, "class_shd": 2}
    none = causal_unit.structure(true * 0, true)
    assert none == {"skeleton_f1": 0, "directed_f1": 0, "shd": 2, "class_f1": 0, "class_shd": 2}


def test_graphs_that_no_observation_tells_apart_have_other_classes() -> None:
    chain = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
    scores = causal_unit.structure(chain.T, chain)
    assert (scores["directed_f1"], scores["class_f1"], scores["class_shd"]) == (0, 1, 0)


def test_the_planted_model_moves_what_does_not_descend_or_passes_a_held_node() -> None:
    truth = causal_unit.Truth.draw(causal_unit.GRAPHS["complex"], 1.0, torch.Generator().manual_seed(0))
    noise = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    place = dict(enumerate(truth.order))
    held = torch.zeros(5, 6, dtype=torch.bool)
    held[:, place[1]] = held[:, place[3]] = True
    free = torch.zeros_like(held)
    before, after = truth.solve(noise, free, noise), truth.solve(noise, held, noise + 9)
    assert torch.equal((before != after) & ~held, truth.moved(held))
    assert [node for node, column in place.items() if truth.moved(held)[0, column]] == [5]


def test_a_file_system_is_called_by_another_name() -> None:
    kinds = [file_system(Path(place)) for place in ("/proc/self", "/sys", "no/such/folder")]
    assert kinds == ["proc", "sysfs", file_system(Path.cwd())] or not Path("/proc").exists()


def test_an_unknown_benchmark_is_run() -> None:
    with pytest.raises(MisuseError, match="engine, demo, scale"):
        run("speed")


def test_an_option_that_a_benchmark_does_not_have_is_dropped_in_silence() -> None:
    with pytest.raises(MisuseError, match="has no option entries"):
        run("engine", entries=3)


@pytest.mark.skipif(find_spec("causaldata") is None, reason="causaldata, which has the tables, is in the extra `dev`")
def test_real_rows_contradict_the_textbook() -> None:
    """Hernán & Robins: quitting smoking adds 3.4 kg by weighting and 3.5 kg by standardisation."""
    found = run("effects", repeats=5)
    nhefs = found["nhefs"]
    assert nhefs["unadjusted"] == pytest.approx(2.54, abs=0.005)
    for name in ("g-formula 1", "ipw 1", "aipw 1", "aipw 2"):
        assert nhefs[name]["estimate"] == pytest.approx(3.4, abs=0.3), name
        assert nhefs[name]["interval"][0] < 3.4 < nhefs[name]["interval"][1]
    assert nhefs["refutations"]["placebo treatment"]["passed"]
    lalonde = found["lalonde"]
    assert (lalonde["treated"], lalonde["controls"], lalonde["experiment"]) == (185, 15992, 1794.0)
    assert lalonde["experiment_here"]["interval"][0] < 1794 < lalonde["experiment_here"]["interval"][1]
    assert lalonde["unadjusted"] < -8000  # the adjusted ones are reported whatever they are
    assert set(lalonde) >= {"g-formula 1", "ipw 1", "aipw 1", "earnings_before_training"}


def test_discovery_is_measured_on_other_problems_than_it_says() -> None:
    found = run("discovery", parts=("agreement",), problems=1, weights=("strong",))
    assert set(found["agreement"]["strong"]) == {"pc", "ges", "fci"}
    for told in found["agreement"]["strong"].values():
        assert told["alike"] + sum(told["causes"].values()) == told["of"] == 1
    assert discovery.problem(3).equals(discovery.problem(3))
    assert discovery.problem(3, latent=True).shape[1] < discovery.problem(3).shape[1]
    once = discovery.once("pc", 6)
    assert once["peak_mib"] >= once["before_mib"] > 50
    with pytest.raises(MisuseError, match="no part sped; choose of agreement, scores, speed, growth"):
        run("discovery", parts=("sped",))


def test_levels_are_not_compared_on_the_same_records() -> None:
    found = run("nonlinear", seeds=1, parts=["mixed"])
    assert found["seeds"] == [0, 0]
    assert len(found["mixed"]) == 9
    assert found["mixed"]["one-hot, boss"]["f1"] > found["mixed"]["identity (level numbers), boss"]["f1"]
    assert all(0 <= run["precision"] <= 1 and run["f1_sd"] == 0 for run in found["mixed"].values())


def test_studies_on_features_are_measured_on_the_records_that_made_their_bounds() -> None:
    options = {"seeds": 1, "records": 600, "epsilons": (20.0,), "methods": ("ges",), "parts": ("curved",)}
    found = run("federated-features", **options)
    assert [row["features"] for row in found["curved"]] == ["identity", "fourier"]
    assert all(0 < row["f1"] == row["least"] <= 1 and row["accused"] == 0 for row in found["curved"])


def test_a_wide_search_is_judged_by_another_pool_or_goes_on_for_ever() -> None:
    found = wide_fit.once("ER1", "moderate", 4, 0)
    assert set(found) == {"rows", "sieve", "sieve+fit"}
    assert all(one["shd"] == 0 and one["moral_f1"] == 1 for one in found.values())
    assert all(one["seconds"] > 0 <= one["more_mib"] for one in found.values())
    (setting,) = run("wide-fit", sizes=(4,), graphs=("ER1",), seeds=1, limit=0.01)["settings"]
    assert (setting["d"], setting["over_limit"], setting["methods"]) == (4, 1, {})


def test_lacking_members_are_not_measured_beside_the_whole() -> None:
    found = run("lacking", seeds=1, records=(300,), epsilons=(60.0,))
    (row,) = found["rows"]
    assert max(row["lacking"], row["whole"], row["complete"]) <= 3
    assert 1.5 < row["discount"] < 3
    assert row["accused"] == 0


def test_structural_models_are_judged_without_planted_truths() -> None:
    found = run("scm", parts=("counterfactuals", "root-cause"), kinds=("additive",), seeds=2, rows=400)
    assert set(found["counterfactuals"]) == {"additive"}
    assert [set(one) for one in found["counterfactuals"]["additive"]["runs"]] == [{"given", "learnt"}] * 2
    assert found["counterfactuals"]["additive"]["mean_r2_change"] > 0.8
    assert (found["root_cause"]["of"], [one["planted"] for one in found["root_cause"]["runs"]]) == (
        2,
        ["risk", "friction"],
    )


def test_a_benchmark_of_structural_models_goes_on_without_its_peer() -> None:
    if find_spec("dowhy") is None:
        with pytest.raises(MisuseError, match=r"dowhy==0\.14"):
            run("scm", parts=("agreement",))
    with pytest.raises(MisuseError, match="no part speed"):
        run("scm", parts=("speed",))


@pytest.mark.skipif(find_spec("causaldata") is None, reason="causaldata, which has the tables, is in the extra `dev`")
def test_eight_institutions_contradict_one_table() -> None:
    """Without noise within a standard error of AIPW on all rows, and two liars of eight who are named."""
    found = run("federated-effects", seeds=2, splits=("lot",), epsilons=(None,))
    honest = found["lot"]["None"]
    assert honest["f=0"]["within_one_error"] == honest["f=2"]["within_one_error"] == 1
    for lie in ("sign", "huge", "absurd", "certain", "rows"):
        assert honest["lies"][lie]["caught"] == 2
        assert honest["lies"][lie]["blamed"] == 0
    quiet = honest["lies"]["quiet"]
    assert quiet["caught"] == 0
    assert quiet["worst_covers"] == 1


def test_shares_of_draws_are_counted_in_two_bins_or_in_none() -> None:
    found = run("edge-probabilities", method="pc", models=2, draws=5, records=200)
    assert sum(row["count"] for row in found["adjacent"]) == 2 * 45
    assert sum(row["count"] for row in found["directed"]) == 2 * 90
    for row in found["adjacent"]:
        if row["count"]:
            assert row["above"] <= row["mean_share"] <= row["up_to"]
            assert 0 <= row["real"] <= 1
    with pytest.raises(MisuseError, match="parametric or rows"):
        run("edge-probabilities", kind="both")
