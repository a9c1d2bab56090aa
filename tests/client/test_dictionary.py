"""What would go wrong with the dictionary that a node signs: statistics or columns that leave, a stale copy, no key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causaldao.client.config import NodeConfig
from causaldao.client.dictionary import FILE, read, site, write
from causaldao.errors import ConfigurationError, IdentityError
from causaldao.signing import SigningKey, peek

KEY = SigningKey.from_seed(b"N" * 32)
TEXT = """
name = "north"
data = "SECRET-FILE.csv"
dataset = "SECRET-SET"
{more}
[mapping.age]
column = "SECRET_AGE"
kind = "count"
unit = "years"
missing = [-77]
scale = 0.125
# seen here: SECRET 18 to 97
[mapping.sex]
column = "SECRET_SEX"
kind = "binary"
levels = {{ M = 0, F = 1 }}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    KEY.save(tmp_path / "signing.pem")
    (tmp_path / "node.toml").write_text(TEXT.format(more=""))
    coordinator = SigningKey.from_seed(b"C" * 32).public.to_text("coordinator")
    pinned = {"federation": "walking", "coordinator": coordinator, "origin": "walking"}
    (tmp_path / "federation.json").write_text(json.dumps(pinned))
    return tmp_path


def test_nothing_of_the_table_leaves_with_the_dictionary(folder: Path) -> None:
    write(folder)
    envelope = (folder / FILE).read_bytes()
    said = str(peek(envelope).body)
    for secret in ("SECRET", "77", "0.125", "97"):
        assert secret not in said
    assert [variable.name for variable in read(envelope, KEY.public).variables] == ["age", "sex"]
    assert peek(envelope).federation == "walking"


def test_columns_are_shared_only_if_the_owner_says_so(folder: Path) -> None:
    (folder / "node.toml").write_text(TEXT.format(more="share_columns = true"))
    assert [variable.column for variable in write(folder).variables] == ["SECRET_AGE", "SECRET_SEX"]


def test_an_edited_file_is_signed_anew(folder: Path) -> None:
    write(folder)
    text = (folder / "node.toml").read_text()
    (folder / "node.toml").write_text(text.replace('"years"', '"months"'))
    write(folder)
    assert read((folder / FILE).read_bytes(), KEY.public).variables[0].unit == "months"


def test_before_joining_it_is_signed_only_for_a_named_federation(folder: Path) -> None:
    (folder / "federation.json").unlink()
    with pytest.raises(ConfigurationError, match="node join"):
        write(folder)
    assert not (folder / FILE).exists()
    assert write(folder, "walking").federation == "walking"
    assert read((folder / FILE).read_bytes(), KEY.public).federation == "walking"


def test_a_key_that_others_can_read_signs_nothing(folder: Path) -> None:
    (folder / "signing.pem").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod"):
        write(folder)
    assert not (folder / FILE).exists()


def test_a_node_without_a_mapping_names_nothing(folder: Path) -> None:
    (folder / "node.toml").write_text('name = "north"\ndata = "d.csv"\ndataset = "x"\n')
    assert write(folder).variables == site(NodeConfig.load(folder)).variables == ()
