"""The Flower ClientApp: it carries a request to the node and the node's reply back. It decides nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from causaldao.client.node import Node
from causaldao.client.witnessing import Attendant
from causaldao.errors import CausalDAOError, ConfigurationError
from causaldao.wire import from_records, to_records

Opener = Callable[[Context], Node]
_LOG = logging.getLogger(__name__)
FOLDER_VARIABLE = "CAUSALDAO_NODE"
QUERIES = ("rollcall", "locate", "evidence", "ballot", "effects", "release", "close", "cosign")


def client_app(opener: Opener) -> ClientApp:
    """A ClientApp whose node is found by ``opener`` from Flower's context (its folder stands in the node config)."""
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        try:
            content = to_records(Attendant(opener(context)).answer(from_records(message.content)))
        except CausalDAOError as error:
            # Not from the coordinator, or unreadable: it gets a word, not a signature.
            content = RecordDict({"refused": ConfigRecord({"code": error.code})})
        except Exception:
            # What an app raises Flower sends to the server word for word: it may hold values of records.
            _LOG.exception("a request could not be handled")
            content = RecordDict({"refused": ConfigRecord({"code": "error"})})
        return Message(content, reply_to=message)

    for action in QUERIES:
        app.query(action)(handle)
    app.train()(handle)
    app.evaluate()(handle)
    return app


def _deployed(context: Context) -> Node:
    """The node whose folder the process was started for (`causaldao.client.launcher` keeps one open instead)."""
    folder = os.environ.get(FOLDER_VARIABLE) or str(context.node_config.get("folder", ""))
    if not folder:
        raise ConfigurationError(f"Neither the variable {FOLDER_VARIABLE} nor the node config names the node's folder.")
    return Node.open(Path(folder))


app = client_app(_deployed)
