"""A node that is opened elsewhere is not the one that was prepared."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from flwr.app import Context, RecordDict

from causaldao.client.node import Node
from causaldao.simulations.attacks import LyingNode
from causaldao.simulations.members import RUN_FILE, STUDY_FILE, RunFolder, Setting, liars, open_node, prepare
from tests.simulations import small

SETTING = Setting(members=4, liars=1, seed=3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, prepared and not begun."""
    parts = {name: small.table(100, seed) for seed, name in enumerate(SETTING.names)}
    (tmp_path / RUN_FILE).write_text(json.dumps({"setting": asdict(SETTING)}))
    (tmp_path / STUDY_FILE).write_text(json.dumps(small.study().to_json()))
    prepare(tmp_path, small.study(), SETTING, parts)
    return tmp_path


def opened(run: Path, partition: int) -> Node:
    return RunFolder(str(run))(Context(1, 2, {"partition-id": partition}, RecordDict(), {}))


def test_a_partition_is_another_member_or_an_honest_one_lies(run: Path) -> None:
    for partition, name in enumerate(SETTING.names):
        node = opened(run, partition)
        assert node.config.name == name
        rows = small.table(100, partition)
        pd.testing.assert_frame_equal(node.table[["a", "b"]], rows[["a", "b"]])
        assert isinstance(node, LyingNode) is (name in SETTING.liar_names)
        assert node.table["c"].equals(rows["c"]) is (name not in SETTING.liar_names)


def test_a_liar_in_a_worker_lies_otherwise_than_inline(run: Path) -> None:
    (name,) = SETTING.liar_names
    inline = open_node(run / "nodes" / name, liars(small.study(), SETTING)[name])
    pd.testing.assert_frame_equal(opened(run, SETTING.names.index(name)).table, inline.table)


def test_preparing_again_gives_a_member_another_key_or_other_rows(run: Path) -> None:
    before = {name: (run / "nodes" / name / "key.pem").read_bytes() for name in SETTING.names}
    parts = {name: small.table(100, 9) for name in SETTING.names}
    folders = prepare(run, small.study(), SETTING, parts)
    assert [folder.name for folder in folders] == list(SETTING.names)
    assert {folder.name: (folder / "key.pem").read_bytes() for folder in folders} == before
    pd.testing.assert_frame_equal(open_node(folders[2]).table, small.table(100, 2))
