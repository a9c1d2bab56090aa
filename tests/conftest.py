"""One thread: small tensor operations are slower with two threads that compete,
and results then do not depend on cores.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when gRPC is imported: it tells of forks on stderr
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # read when gRPC starts

import grpc
import pytest
import torch

_LONG = ("wire", "simulations", "server")  # folders of tests, the longest first

torch.set_num_threads(1)
# Where gRPC's own handlers are on, one in twelve forks of a process with a server in it aborts before it is another
# program (1.85.1). Tests fork, and Ray does to start its own. No child takes that over: it is as its users have it.
grpc.insecure_channel("localhost:1").close()
del os.environ["GRPC_ENABLE_FORK_SUPPORT"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: at the end all cores still have something to do."""

    def rank(item: pytest.Item) -> int:
        return next((k for k, folder in enumerate(_LONG) if folder in item.path.parts), len(_LONG))

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What a test wrote to its log travels to the process that reports: half of a surrogate pair would end it."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report
