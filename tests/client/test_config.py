"""What would go wrong with a node's files: two that disagree, a node that has not joined, a fault found too late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from causaldao.client.config import NodeConfig
from causaldao.client.fit import declaration
from causaldao.client.node import Lifetime, Node
from causaldao.client.node import NodeConfig as FromNode
from causaldao.errors import ConfigurationError, IdentityError
from causaldao.signing import SigningKey
from tests.simulations.planted_environments import study

COORDINATOR = SigningKey.from_seed(b"C" * 32).public.to_text("coordinator")
PINNED = {
    "federation": "walking", "coordinator": COORDINATOR, "origin": "walking.example/log", "fleet": "h:1",
    "enrolment": "h:2", "bundle": "0",
}  # fmt: skip
NODE = 'name = "north"\ndataset = "ward"\n'
SOURCE = '[source]\npath = "d.csv"\n'


def write(folder: Path, text: str = NODE + SOURCE, pinned: Any = PINNED) -> Path:
    (folder / "node.toml").write_text(text)
    if pinned is not None:
        (folder / "federation.json").write_text(pinned if isinstance(pinned, str) else json.dumps(pinned))
    return folder


def test_what_joining_wrote_is_taken(tmp_path: Path) -> None:
    config = NodeConfig.load(write(tmp_path))
    assert (config.federation, config.coordinator) == ("walking", COORDINATOR)
    assert config.origin == "walking.example/log"
    assert config.table.path == "d.csv"


def test_a_node_that_has_not_joined_is_told_how(tmp_path: Path) -> None:
    write(tmp_path, pinned=None)
    with pytest.raises(ConfigurationError, match=r"causaldao node join .* TOKEN first"):
        NodeConfig.load(tmp_path)
    assert NodeConfig.load(tmp_path, joined=False).federation == ""


def test_todays_flat_files_still_hold_everything(tmp_path: Path) -> None:
    flat = f'{NODE}data = "d.csv"\nfederation = "fed"\ncoordinator = "{COORDINATOR}"\napproved = ["x"]\n'
    config = NodeConfig.load(write(tmp_path, flat, None))
    assert (config.federation, config.data, config.approved) == ("fed", "d.csv", ("x",))
    assert config.lifetime == Lifetime()
    assert FromNode is NodeConfig


@pytest.mark.parametrize("key", ["federation", "coordinator", "origin"])
def test_two_files_that_disagree_are_refused(key: str, tmp_path: Path) -> None:
    given = {"federation": "walking", "coordinator": COORDINATOR, key: "other"}
    lines = "".join(f'{name} = "{value}"\n' for name, value in given.items())
    with pytest.raises(ConfigurationError, match=f"names the {key} 'other'"):
        NodeConfig.load(write(tmp_path, NODE + lines + SOURCE))


@pytest.mark.parametrize("pinned", ["", "[]", "{}", '{"federation": "walking"}'])
def test_a_broken_file_of_the_federation_is_named(pinned: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"federation\.json"):
        NodeConfig.load(write(tmp_path, pinned=pinned))


FAULTS = {
    "no source": (NODE, "data: missing"),
    "two sources": (NODE + 'data = "d.csv"\n' + SOURCE, "leave out one"),
    "a federation alone": (NODE + 'federation = "f"\n' + SOURCE, "coordinator: missing beside federation"),
    "a coordinator alone": (NODE + 'coordinator = "c"\n' + SOURCE, "federation: missing beside coordinator"),
    "a name of a variable": (NODE + SOURCE + '[mapping."a b"]\ncolumn="a"\nkind="count"\n', "not variable names"),
    "a person": (NODE + SOURCE + '[mapping.a]\ncolumn="PERSON_ID"\nkind="count"\n', "mapping.a: person_id"),
    "a query that writes": (NODE + '[source]\nurl="sqlite:///a.db"\nquery="DROP TABLE a"\n', "source: The query"),
    "a level": (NODE + SOURCE + '[mapping.a]\ncolumn="a"\nkind="binary"\nlevels={M="m"}\n', "mapping.a.levels.M"),
    "an unknown key": (NODE + "seed = 7\n" + SOURCE, "seed"),
    "a cap of nothing": (NODE + SOURCE + "[lifetime]\nepsilon = 0\n", "lifetime.epsilon"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_its_key(case: str, tmp_path: Path) -> None:
    text, expected = FAULTS[case]
    with pytest.raises(ConfigurationError) as caught:
        NodeConfig.load(write(tmp_path, text, None), joined=False)
    assert any(f"node.toml: {expected}" in problem or expected in problem for problem in caught.value.problems)


def test_a_node_that_names_no_conditions_is_told_of_empty_ones(tmp_path: Path) -> None:
    config = NodeConfig.load(write(tmp_path))
    with pytest.raises(ConfigurationError, match="says of study 'chain' none, and the study's environments are plain"):
        declaration(config, study())
    with pytest.raises(ConfigurationError, match="lacks: Input should be a list"):
        NodeConfig.load(write(tmp_path, f'lacks = "a"\n{NODE}'))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    text = 'name = "N"\ndataset = ""\nfederation = "f"\n[mapping.a]\nkind = "date"\n'
    with pytest.raises(ConfigurationError, match="6 fault"):
        NodeConfig.load(write(tmp_path, text, None), joined=False)


SECRET = "hunter2"


def test_a_password_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    text = f'{NODE}[source]\nurl = "postgresql://reader:{SECRET}@db/ward"\nquery = "SELECT 1"\n'
    with pytest.raises(ConfigurationError, match="password_env") as caught:
        NodeConfig.load(write(tmp_path, text))
    assert SECRET not in str(caught.value)


def test_a_node_opens_with_its_own_key(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(IdentityError, match=r"signing\.pem"):
        Node.open(tmp_path)
    SigningKey.from_seed(b"K" * 32).save(tmp_path / "key.pem")
    assert Node.open(tmp_path).key.public == SigningKey.from_seed(b"K" * 32).public  # a simulated node's
    SigningKey.from_seed(b"S" * 32).save(tmp_path / "signing.pem")
    node = Node.open(tmp_path)
    assert node.key.public == SigningKey.from_seed(b"S" * 32).public
    assert node.config.federation == "walking"
