"""The inline engine against Flower's contract: bytes, identities, contexts, lost messages, time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from causaldao.server.clock import SimulatedClock
from causaldao.simulations.engine import NO_FAULTS, Faults, InlineGrid, identity, run, through_bytes


def content(value: float) -> RecordDict:
    array = Array("float64", (2,), "raw.le", np.array([value, value]).tobytes())
    return RecordDict({"arrays": ArrayRecord({"x": array}), "config": ConfigRecord({"value": value})})


def app(act: Any = None) -> ClientApp:
    """Echoes what came, after ``act`` has seen it."""
    client = ClientApp()

    @client.query("ping")
    def ping(message: Message, context: Context) -> Message:
        if act is not None:
            act(message, context)
        return Message(message.content, reply_to=message)

    return client


def ask(grid: InlineGrid, timeout: float | None = 60.0) -> list[Message]:
    """One question to every node."""
    with identity(1):
        questions = [Message(content(1.5), node, "query.ping") for node in grid.get_node_ids()]
        return list(grid.send_and_receive(questions, timeout=timeout))


def grid(*acts: Any, faults: Faults = NO_FAULTS, **options: Any) -> InlineGrid:
    apps = {f"node-{k}": app(act) for k, act in enumerate(acts)}
    return InlineGrid(apps, SimulatedClock(), faults, **options)


def current() -> tuple[Any, ...]:
    value: Any = TaskIdentity
    return value._run_id, value._node_id, value._task_id


def test_messages_pass_through_flowers_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    serialised: list[bytes] = []
    real = through_bytes

    def spy(message: Message) -> Message:
        back = real(message)
        serialised.append(back.content.array_records["arrays"]["x"].data)
        assert back is not message
        return back

    monkeypatch.setattr("causaldao.simulations.engine.through_bytes", spy)
    (reply,) = ask(grid(None))
    assert len(serialised) == 2  # there and back
    np.testing.assert_array_equal(np.frombuffer(reply.content.array_records["arrays"]["x"].data), [1.5, 1.5])


def test_what_a_client_does_to_a_message_does_not_reach_the_sender_or_other_nodes() -> None:
    def spoil(message: Message, context: Context) -> None:
        message.content.config_records["config"]["value"] = -1.0

    replies = ask(grid(spoil, None))
    assert [reply.content["config"]["value"] for reply in replies] == [-1.0, 1.5]


def test_ids_differ_and_replies_point_to_their_requests() -> None:
    network = grid(None, None)
    with identity(1):
        questions = [Message(content(1.0), node, "query.ping") for node in (1000, 1001)]
        replies = list(network.send_and_receive(questions, timeout=60.0))
    asked = [question.metadata.message_id for question in questions]
    assert len(set(asked)) == 2
    assert [reply.metadata.reply_to_message_id for reply in replies] == asked
    assert [reply.metadata.src_node_id for reply in replies] == [1000, 1001]
    assert len({reply.metadata.message_id for reply in replies}) == 2


def test_each_node_has_its_own_identity_context_and_state() -> None:
    seen: list[tuple[Any, ...]] = []

    def remember(message: Message, context: Context) -> None:
        counter = context.state.config_records.setdefault("count", ConfigRecord({"calls": 0}))
        calls = counter["calls"]
        assert isinstance(calls, int)
        counter["calls"] = calls + 1
        seen.append((current()[1], context.node_id, context.node_config.get("part"), counter["calls"]))

    network = grid(remember, remember, node_config={"node-0": {"part": 0}, "node-1": {"part": 1}})
    ask(network)
    ask(network)
    assert seen == [(1000, 1000, 0, 1), (1001, 1001, 1, 1), (1000, 1000, 0, 2), (1001, 1001, 1, 2)]


def test_flowers_identity_is_restored_though_a_client_raises() -> None:
    def raising(message: Message, context: Context) -> None:
        raise ZeroDivisionError("secret 4711")

    before = current()
    (reply,) = ask(grid(raising))
    assert current() == before
    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (2, "ZeroDivisionError")
    with pytest.raises(KeyError), identity(7):
        raise KeyError
    assert current() == before


def test_a_client_that_returns_no_message_fails_alone() -> None:
    def wrong(message: Message, context: Context) -> None:
        """No message."""

    apps: dict[str, Any] = {"bad": wrong, "good": app()}
    network = InlineGrid(apps, SimulatedClock())
    bad, good = ask(network)
    assert bad.has_error()
    assert not good.has_error()


def test_a_lost_message_costs_the_whole_timeout_on_the_injected_clock_and_no_real_time() -> None:
    network = grid(None, None, faults=Faults(request=lambda message: message.metadata.dst_node_id != 1000))
    began = network.clock.monotonic()
    replies = ask(network, timeout=3600.0)
    assert [reply.metadata.src_node_id for reply in replies] == [1001]
    assert 3600 <= network.clock.monotonic() - began < 3660


def test_answers_from_all_cost_no_timeout() -> None:
    network = grid(None, None, faults=Faults(replies=lambda messages: messages[::-1] * 2))
    began = network.clock.monotonic()
    assert [reply.metadata.src_node_id for reply in ask(network, timeout=3600.0)] == [1001, 1000, 1001, 1000]
    assert network.clock.monotonic() - began < 60


def test_pushed_messages_are_pulled_once() -> None:
    network = grid(None)
    with identity(1):
        ids = list(network.push_messages([network.create_message(content(2.0), "query.ping", 1000, "group", 60.0)]))
        assert len(list(network.pull_messages(ids))) == 1
        assert list(network.pull_messages(ids)) == []


def test_faults_of_replies_touch_what_is_pulled_together_and_nothing_else() -> None:
    seen: list[int] = []

    def replies(messages: list[Message]) -> list[Message]:
        seen.append(len(messages))
        return messages[:1]

    network = grid(None, None, faults=Faults(replies=replies))
    with identity(1):
        ids = list(network.push_messages([Message(content(1.0), node, "query.ping") for node in (1000, 1001)]))
        assert [m.metadata.src_node_id for m in network.pull_messages(ids)] == [1000]
        assert list(network.pull_messages(ids)) == []  # a dropped reply is gone
    assert seen == [2]


def test_a_request_that_is_lost_leaves_nothing_to_pull() -> None:
    network = grid(None, faults=Faults(request=lambda message: False))
    with identity(1):
        ids = list(network.push_messages([Message(content(1.0), 1000, "query.ping")]))
        assert list(network.pull_messages(ids)) == []


def test_an_unknown_action_is_an_error_of_that_node_only() -> None:
    network = grid(None)
    with identity(1):
        (reply,) = network.send_and_receive([Message(content(1.0), 1000, "query.other")], timeout=60.0)
    assert reply.has_error()


def test_a_server_app_runs_with_the_servers_identity() -> None:
    server, seen = ServerApp(), list[Any]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        seen.append((current()[1], context.run_config["rounds"], len(list(grid.get_node_ids()))))

    run(server, grid(None, None), {"rounds": 3})
    assert seen == [(1, 3, 2)]
