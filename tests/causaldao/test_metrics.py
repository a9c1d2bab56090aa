"""Metrics: a peer makes a series for each call, one daemon's counts end up in another's, the table lies."""

from __future__ import annotations

import socket
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from causaldao import metrics as module
from causaldao.errors import ConfigurationError
from causaldao.metrics import FAMILIES, CoordinatorMetrics, Metrics, NodeMetrics, serve


class Clock:
    """Seconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"causaldao_{name}", labels)


def _series(metrics: Metrics) -> int:
    return sum(len(family.samples) for family in metrics.registry.collect())


def test_the_table_in_the_docstring_is_not_what_is_served() -> None:
    rows = [line.split() for line in (module.__doc__ or "").splitlines() if line.startswith("    causaldao_")]
    written = {row[0]: (row[1], " ".join(row[2:])) for row in rows}
    for family in FAMILIES:
        role, rest = written.pop(family.name)
        assert role == ("both" if len(family.roles) == 2 else family.roles[0])
        assert rest.startswith(", ".join(family.labels) or "- ")
    assert written == {}


def test_the_table_in_the_documentation_is_another() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| `causaldao_" in line]
    written = {row[0].strip("`"): (row[1], row[2]) for row in rows}
    assert written == {
        family.name: ("both" if len(family.roles) == 2 else family.roles[0], ", ".join(family.labels) or "-")
        for family in FAMILIES
    }


def test_a_peer_makes_a_series_for_each_call() -> None:
    metrics = CoordinatorMetrics()
    metrics.gateway_call("x", "y")
    metrics.restarted("x")
    before = _series(metrics)
    for word in map(str, range(50)):
        metrics.gateway_call(word, word)
        metrics.standings({word: 1})
        metrics.restarted(word)
        metrics.members({word: 1})
        metrics.studies({word: 1})
        metrics.phase(word)
    assert _series(metrics) == before
    assert _value(metrics, "gateway_calls_total", method="other", outcome="other") == 51
    assert _value(metrics, "standings", state="other") == 1


def test_a_count_goes_astray() -> None:
    metrics = CoordinatorMetrics()
    metrics.standings({"approved": 3, "declined": 1})
    metrics.standings({"approved": 4})
    metrics.gateway_call("PullMessages", "passed", received=10, sent=2_000)
    metrics.gateway_call("PullMessages", "refused", received=5)
    metrics.superlink_restarted()
    assert _value(metrics, "standings", state="approved") == 4
    assert _value(metrics, "standings", state="declined") == 0
    assert _value(metrics, "gateway_calls_total", method="PullMessages", outcome="passed") == 1
    assert _value(metrics, "gateway_received_bytes_total", method="PullMessages") == 15
    assert _value(metrics, "gateway_sent_bytes_total", method="PullMessages") == 2_000
    assert _value(metrics, "restarts_total", program="flower-superlink") == 1


def test_a_state_that_nobody_is_in_any_more_keeps_its_count() -> None:
    metrics = CoordinatorMetrics()
    metrics.members({"admitted": 3, "revoked": 1})
    metrics.members({"admitted": 2})
    metrics.studies({"closed": 4, "strange": 2})
    assert _value(metrics, "members", state="admitted") == 2
    assert _value(metrics, "members", state="revoked") == 0
    assert _value(metrics, "studies", state="closed") == 4
    assert _value(metrics, "studies", state="other") == 2


def test_two_phases_are_current_at_once(clock: Clock) -> None:
    metrics = CoordinatorMetrics(clock)
    assert _value(metrics, "phase_seconds", phase="idle") == 0
    metrics.phase("roll call")
    clock.seconds += 7
    assert _value(metrics, "phase_seconds", phase="roll-call") == 7
    assert _value(metrics, "phase_seconds", phase="idle") is None
    metrics.phase("training", since=clock.seconds - 100)
    assert _value(metrics, "phase_seconds", phase="training") == 100
    assert _value(metrics, "phase_seconds", phase="roll-call") is None


def test_a_certificate_that_is_not_known_looks_expired(clock: Clock) -> None:
    metrics = NodeMetrics(clock)
    unknown = _value(metrics, "certificate_seconds")
    assert unknown != unknown
    metrics.certificate(clock.seconds + 60)
    clock.seconds += 90
    assert _value(metrics, "certificate_seconds") == -30


def test_silence_of_the_coordinator_is_not_seen(clock: Clock) -> None:
    metrics = NodeMetrics(clock)
    clock.seconds += 40
    assert _value(metrics, "contact_age_seconds") == 40
    metrics.contact()
    clock.seconds += 5
    assert _value(metrics, "contact_age_seconds") == 5


def test_what_a_node_did_is_lost() -> None:
    metrics = NodeMetrics()
    metrics.budget("ward 3, 2019-2024", 1.5, 5.0)
    assert _value(metrics, "epsilon_spent", dataset="ward 3, 2019-2024") == 1.5
    assert _value(metrics, "epsilon_cap", dataset="ward 3, 2019-2024") == 5.0


def test_a_new_launcher_takes_counts_back() -> None:
    metrics = NodeMetrics()
    metrics.tasks({"answered": 3, "bundle refused": 1})
    metrics.tasks({"answered": 5, "bundle refused": 1})
    metrics.tasks({"answered": 1})
    metrics.tasks({"answered": 1, "bundle refused": 1, "strange": 2})
    assert _value(metrics, "tasks_total", outcome="answered") == 6
    assert _value(metrics, "tasks_total", outcome="bundle refused") == 2
    assert _value(metrics, "tasks_total", outcome="other") == 2
    assert _value(metrics, "bundles_refused_total") == 2


def test_two_daemons_in_one_process_share_their_counts() -> None:
    one, two = NodeMetrics(), NodeMetrics()
    one.tasks({"bundle refused": 1})
    assert _value(two, "bundles_refused_total") == 0
    assert REGISTRY.get_sample_value("causaldao_bundles_refused_total") is None


def test_a_word_of_ours_is_counted_as_other() -> None:
    """The closed sets are written here, since this floor may not look up: they must say what those above say."""
    from causaldao import relay
    from causaldao.server import progress, registry, standing

    assert set(module.CALLS) == {name.removeprefix(relay.PREFIX) for name in relay.METHODS}
    assert {name.replace(" ", "-") for name in progress.PHASES} <= set(module.PHASES)
    assert set(module.MEMBER_STATES) == {registry.PENDING, registry.ADMITTED, registry.REVOKED}
    assert set(module.STUDY_STATES) == set(registry.STATES)
    for state in module.STANDINGS:
        assert state in str(standing.Standing.__doc__)


def test_the_page_is_not_served_or_goes_on_after_close(port: int) -> None:
    metrics = NodeMetrics()
    metrics.budget('a "quoted"\nname', 1, 2)
    server = serve(metrics, port=port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            text = page.read().decode()
    finally:
        server.close()
        server.close()
    assert 'causaldao_epsilon_spent{dataset="a \\"quoted\\"\\nname"} 1.0\n' in text
    assert server.port == port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_port_that_is_taken_is_a_traceback(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*metrics_port"):
            serve(NodeMetrics(), port=port)
    with pytest.raises(ConfigurationError, match="70000"):
        serve(NodeMetrics(), port=70_000)


def test_port_0_serves_somewhere() -> None:
    before = threading.active_count()
    server = serve(NodeMetrics())
    assert threading.active_count() == before
    assert server.port == 0
    server.close()


def test_in_a_container_nobody_reaches_the_page(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALDAO_METRICS", f"localhost:{port}")
    server = serve(NodeMetrics(), "192.0.2.1", 0)
    try:
        assert server.port == port
        socket.create_connection(("localhost", port), timeout=5).close()
    finally:
        server.close()


@pytest.mark.parametrize("text", ["9464", ":9464", "localhost:", "localhost:http", "localhost:-1"])
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CAUSALDAO_METRICS", text)
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        serve(NodeMetrics())
