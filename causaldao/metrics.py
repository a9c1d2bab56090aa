"""What the daemons count, for Prometheus. Off unless a port is given, and then on loopback unless told otherwise.

    name                                     role         labels                what
    causaldao_build_info                     both         version               always 1
    causaldao_members                        coordinator  state                 members
    causaldao_studies                        coordinator  state                 studies
    causaldao_standings                      coordinator  state                 how members of running studies stand
    causaldao_gateway_calls_total            coordinator  method, outcome       Fleet calls at the gateway
    causaldao_gateway_received_bytes_total   coordinator  method                bytes of their requests
    causaldao_gateway_sent_bytes_total       coordinator  method                bytes of their responses
    causaldao_phase_seconds                  coordinator  phase                 how long the current phase has lasted
    causaldao_tasks_total                    node         outcome               tasks that the launcher took
    causaldao_epsilon_spent                  node         dataset               epsilon spent, over all studies
    causaldao_epsilon_cap                    node         dataset               its lifetime cap
    causaldao_contact_age_seconds            node         -                     since the coordinator last answered
    causaldao_bundles_refused_total          node         -                     app bundles that were not the pinned one
    causaldao_certificate_seconds            both         -                     until the own certificate expires
    causaldao_restarts_total                 both         program               restarts of a program under supervision

A label's value is from a closed set, or ``other``: whatever a peer sends, it makes no new series. The one exception is
``dataset``, which the node's owner names. Nothing here tells a member from another, or a record's value.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Thread
from typing import Final, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from causaldao import __version__
from causaldao.errors import ConfigurationError

Role = Literal["coordinator", "node"]
OTHER: Final = "other"
VARIABLE: Final = "CAUSALDAO_METRICS"
_PREFIX = "causaldao_"
MEMBER_STATES: Final = ("pending", "admitted", "revoked")
STUDY_STATES: Final = ("proposed", "running", "closed", "aborted")
PHASES: Final = (
    "idle", "approve", "roll-call", "evidence", "pool", "ballots", "adopt", "effects", "training", "evaluate",
    "release", "close",
)  # fmt: skip
STANDINGS: Final = (
    "unknown", "not connected", "pending", "asked", "approved", "declined", "answered", "absent", "quarantined",
    "excluded", "revoked",
)  # fmt: skip
CALLS: Final = (
    "ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages", "GetRun", "GetFab",
    "PushObject", "PullObject", "ConfirmMessageReceived",
)  # fmt: skip
CALL_OUTCOMES: Final = ("passed", "refused", "failed")
TASK_OUTCOMES: Final = ("answered", "failed", "bundle refused")
PROGRAMS: Final = ("flower-superlink", "flower-supernode", "launcher")


@dataclass(frozen=True)
class Family:
    """A metric: its labels with the values each may take, None for those that the node's owner names."""

    name: str
    make: type[Counter] | type[Gauge]
    roles: tuple[Role, ...]
    help: str
    labels: Mapping[str, frozenset[str] | None]


def _family(
    name: str, make: type[Counter] | type[Gauge], role: str, help: str, **labels: tuple[str, ...] | None
) -> Family:
    roles: tuple[Role, ...] = tuple(one for one in _ROLES if role in (one, "both"))
    closed = {label: None if words is None else frozenset(words) for label, words in labels.items()}
    return Family(_PREFIX + name, make, roles, help, closed)


_ROLES: tuple[Role, ...] = ("coordinator", "node")
FAMILIES: Final = (
    _family("build_info", Gauge, "both", "The version that runs; always 1.", version=(__version__,)),
    _family("members", Gauge, "coordinator", "Members by state.", state=MEMBER_STATES),
    _family("studies", Gauge, "coordinator", "Studies by state.", state=STUDY_STATES),
    _family("standings", Gauge, "coordinator", "Members of running studies, as they stand.", state=STANDINGS),
    _family(
        "gateway_calls_total", Counter, "coordinator", "Fleet calls at the gateway.", method=CALLS,
        outcome=CALL_OUTCOMES,
    ),
    _family("gateway_received_bytes_total", Counter, "coordinator", "Bytes of the calls' requests.", method=CALLS),
    _family("gateway_sent_bytes_total", Counter, "coordinator", "Bytes of the calls' responses.", method=CALLS),
    _family("phase_seconds", Gauge, "coordinator", "Seconds since the current phase began.", phase=PHASES),
    _family("tasks_total", Counter, "node", "Tasks that the launcher took.", outcome=TASK_OUTCOMES),
    _family("epsilon_spent", Gauge, "node", "Epsilon spent over all studies, at the cap's delta.", dataset=None),
    _family("epsilon_cap", Gauge, "node", "The most epsilon that may ever be spent.", dataset=None),
    _family("contact_age_seconds", Gauge, "node", "Seconds since the coordinator last answered, or since the start."),
    _family("bundles_refused_total", Counter, "node", "App bundles that were not the pinned one."),
    _family("certificate_seconds", Gauge, "both", "Seconds until the own certificate expires; NaN if none is known."),
    _family("restarts_total", Counter, "both", "Restarts of a program under supervision.", program=PROGRAMS),
)  # fmt: skip


class Metrics:
    """The metrics of one daemon, in a registry of its own: what both roles have. May be called from any thread.

    A word outside a label's closed set is counted as ``other``.
    """

    def __init__(self, role: Role, now: Callable[[], float] = time.time) -> None:
        self.registry = CollectorRegistry()
        self._now = now
        self._expires = float("nan")
        self._families = {one.name.removeprefix(_PREFIX): one for one in FAMILIES if role in one.roles}
        self._made = {
            name: one.make(one.name, one.help, list(one.labels), registry=self.registry)
            for name, one in self._families.items()
        }
        self._gauge("build_info", version=__version__).set(1)
        self._gauge("certificate_seconds").set_function(lambda: self._expires - self._now())

    def certificate(self, expires: float) -> None:
        """The own certificate ends at ``expires``, in seconds since 1970."""
        self._expires = expires

    def restarted(self, program: str) -> None:
        """A program under supervision (one of `PROGRAMS`) ended, and was started again."""
        self._counter("restarts_total", program=program).inc()

    def _labelled(self, name: str, labels: Mapping[str, str]) -> Counter | Gauge:
        family, made = self._families[name], self._made[name]
        if not labels:
            return made
        return made.labels(**{label: _closed(family.labels[label], word) for label, word in labels.items()})

    def _counter(self, name: str, **labels: str) -> Counter:
        found = self._labelled(name, labels)
        assert isinstance(found, Counter)
        return found

    def _gauge(self, name: str, **labels: str) -> Gauge:
        found = self._labelled(name, labels)
        assert isinstance(found, Gauge)
        return found


class CoordinatorMetrics(Metrics):
    """What the coordinator counts."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__("coordinator", now)
        self.members({})
        self.studies({})
        self.standings({})
        self.phase("idle")

    def members(self, counts: Mapping[str, int]) -> None:
        """How many members are in each of `MEMBER_STATES`; a state that is not named has none."""
        self._count_states("members", MEMBER_STATES, counts)

    def studies(self, counts: Mapping[str, int]) -> None:
        """How many studies are in each of `STUDY_STATES`; a state that is not named has none."""
        self._count_states("studies", STUDY_STATES, counts)

    def standings(self, counts: Mapping[str, int]) -> None:
        """How many members of running studies are in each of `STANDINGS`; a state that is not named has none."""
        self._count_states("standings", STANDINGS, counts)

    def gateway_call(self, method: str, outcome: str, received: int = 0, sent: int = 0) -> None:
        """A Fleet call (`CALLS`) came to an outcome (`CALL_OUTCOMES`), with so many bytes in and out."""
        self._counter("gateway_calls_total", method=method, outcome=outcome).inc()
        self._counter("gateway_received_bytes_total", method=method).inc(received)
        self._counter("gateway_sent_bytes_total", method=method).inc(sent)

    def superlink_restarted(self) -> None:
        """Flower's SuperLink ended, and was started again."""
        self.restarted("flower-superlink")

    def phase(self, name: str, since: float | None = None) -> None:
        """The running study is in the phase ``name`` (`PHASES`), ``idle`` for none, ``since`` then (None: now)."""
        began = self._now() if since is None else since
        self._made["phase_seconds"].clear()
        self._gauge("phase_seconds", phase=name.replace(" ", "-")).set_function(lambda: self._now() - began)

    def _count_states(self, name: str, states: tuple[str, ...], counts: Mapping[str, int]) -> None:
        for state in states:
            self._gauge(name, state=state).set(counts.get(state, 0))
        unknown = sum(count for state, count in counts.items() if state not in states)
        self._gauge(name, state=OTHER).set(unknown)


class NodeMetrics(Metrics):
    """What a node counts."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__("node", now)
        self._contact = now()
        self._tasks: dict[str, int] = {}
        self._gauge("contact_age_seconds").set_function(lambda: self._now() - self._contact)

    def tasks(self, counts: Mapping[str, int]) -> None:
        """What the launcher says it did since *it* started, by `TASK_OUTCOMES`: a smaller count is a new launcher's."""
        for word, count in counts.items():
            before = self._tasks.get(word, 0)
            added = count - before if count >= before else count
            self._counter("tasks_total", outcome=word).inc(added)
            if word == "bundle refused":
                self._counter("bundles_refused_total").inc(added)
        self._tasks = dict(counts)

    def budget(self, dataset: str, spent: float, cap: float) -> None:
        """What the data set of that name has spent over all studies, and the most that it may."""
        self._gauge("epsilon_spent", dataset=dataset).set(spent)
        self._gauge("epsilon_cap", dataset=dataset).set(cap)

    def contact(self) -> None:
        """The coordinator answered just now."""
        self._contact = self._now()


def _closed(words: frozenset[str] | None, word: str) -> str:
    return word if words is None or word in words else OTHER


class MetricsServer:
    """The page that Prometheus reads. ``port`` is 0 if it is off."""

    def __init__(self, port: int = 0, server: WSGIServer | None = None, thread: Thread | None = None) -> None:
        self.port = port
        self._server = server
        self._thread = thread

    def close(self) -> None:
        """Stop serving and free the port; again is no fault."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        if self._thread is not None:
            self._thread.join()


def serve(metrics: Metrics, host: str = "127.0.0.1", port: int = 0) -> MetricsServer:
    """Serve ``http://host:port/metrics`` in a thread; port 0 is off. Plain HTTP: let only Prometheus reach it.

    The variable CAUSALDAO_METRICS, as HOST:PORT, takes their place: into a container, Prometheus comes from without.
    Raises ConfigurationError if the address is none, or cannot be taken.
    """
    host, port = _address(os.environ.get(VARIABLE, ""), host, port)
    if port == 0:
        return MetricsServer()
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"The metrics cannot be served on {host}:{port} ({error}): choose another metrics_port, or 0 for none."
        ) from error
    return MetricsServer(port, server, thread)


def _address(text: str, host: str, port: int) -> tuple[str, int]:
    if not text:
        return host, port
    name, _, number = text.rpartition(":")
    if not name or not number.isdecimal():
        raise ConfigurationError(f"{VARIABLE} is {text!r}, expected HOST:PORT such as 0.0.0.0:9464, or nothing.")
    return name.strip("[]"), int(number)
