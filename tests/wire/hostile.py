"""A hostile member's own program: it holds a true certificate, and sends what no node of ours would.

``python -m tests.wire.hostile NODE_FOLDER GATEWAY MEGABYTES``: answers the next request with a reply of that size.
Prints what stopped it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from causaldao.client.connector import Identity

PART = 4 << 20


def main(folder: Path, gateway: str, megabytes: int) -> None:
    key = load_pem_private_key((folder / "tls.pem").read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    channel = grpc.intercept_channel(
        grpc.secure_channel(gateway, Identity.read(folder).credentials()),
        RuntimeVersionClientInterceptor(component_name="SuperNode"),
        NodeAuthClientInterceptor(key, key.public_key()),
    )
    stub = FleetStub(channel)
    public = public_key_to_bytes(key.public_key())
    node = Node(node_id=activate(stub, public))
    say("ready")
    while not (pulled := stub.PullMessages(PullMessagesRequest(node=node))).messages_list:
        time.sleep(0.5)
    asked = pulled.messages_list[0].metadata
    names = {hashlib.sha256(part(k)).hexdigest(): k for k in range((megabytes << 20) // PART)}
    reply = Message(
        metadata=Metadata(
            run_id=asked.run_id, message_id="f" * 64, src_node_id=node.node_id, dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id, group_id=asked.group_id, ttl=60.0, message_type=asked.message_type,
            created_at=time.time(),
        )
    )  # fmt: skip
    tree = ObjectTree(object_id="f" * 64, children=[ObjectTree(object_id=name) for name in names])
    first = PushMessagesRequest(
        node=node, messages_list=[reply], message_object_trees=[tree], clientapp_runtime_list=[0.1]
    )
    session = stub.PushMessages(first).session_id
    sent = 0
    for name, k in names.items():
        request = PushObjectRequest(
            node=node, run_id=asked.run_id, object_id=name, object_content=part(k), session_id=session
        )
        try:
            stub.PushObject(request)
            sent += PART
        except grpc.RpcError as error:
            say(f"stopped after {sent >> 20} MB: {error.code().name}: {error.details()}")


def part(k: int) -> bytes:
    return bytes([k % 256]) * PART


def activate(stub: FleetStub, public: bytes) -> int:
    """The node's id; Flower waits until the member's honest node, which was stopped, counts as gone."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return int(stub.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30)).node_id)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
