"""The objects that a Flower message consists of, looked at before Flower unpacks them.

Flower sends a message as a tree of objects, each named by its SHA-256, and unpacks whatever comes. A megabyte may
unpack to gigabytes (an array may name one chunk a million times), and what cannot be unpacked raises an exception
where all messages are taken in at once. So both ends look at the objects first: they form the tree of our messages
and no other, all of them are there, and together they unpack to no more than a bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from causaldao.errors import IdentityError

MAX_OBJECTS = 1024  # of one message, each counted as often as it is named; ours have far fewer
_CHILDREN: dict[str, tuple[str, ...]] = {
    "Message": ("RecordDict",),
    "RecordDict": ("ArrayRecord", "ConfigRecord", "MetricRecord"),
    "ArrayRecord": ("Array",),
    "Array": ("ArrayChunk",),
    "ConfigRecord": (),
    "MetricRecord": (),
    "ArrayChunk": (),
}


def unpack(root: str, objects: Mapping[str, bytes], max_bytes: int) -> Message:
    """The message under ``root``; an IdentityError if `check_objects` or Flower itself will not have it."""
    check_objects(root, objects, max_bytes)
    try:
        message = inflate_object_from_contents(root, dict(objects))
    except Exception as error:  # Flower raises what it likes
        raise IdentityError(f"A message cannot be unpacked ({type(error).__name__}).") from error
    if not isinstance(message, Message):
        raise IdentityError(f"Expected a message, but its objects are a {type(message).__name__}.")
    return message


def check_objects(root: str, objects: Mapping[str, bytes], max_bytes: int, max_objects: int = MAX_OBJECTS) -> None:
    """Return if the objects (content by name) are one message under ``root`` that may be unpacked.

    Raises
    ------
    IdentityError
        an object is missing, is named by nobody, or stands where none of its kind can; there are more than
        ``max_objects``, or they unpack to more than ``max_bytes``.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = [(root, ("Message",))]
    reached, count, size = set[str](), 0, 0
    while waiting:
        name, kinds = waiting.pop()
        kind, children = _head(objects, name)
        if kind not in kinds:
            raise IdentityError(f"A message has a {kind!r} where only {' or '.join(kinds) or 'nothing'} can stand.")
        count += 1
        reached.add(name)
        size += _array_bytes(objects, name, children) if kind == "Array" else len(objects[name])
        if count + len(waiting) + len(children) > max_objects or size > max_bytes:
            raise IdentityError(
                f"A message unpacks to more than {max_objects} objects or {max_bytes} bytes: it was not unpacked."
            )
        waiting += [(child, _CHILDREN[kind]) for child in children]
    if len(reached) != len(objects):
        raise IdentityError(f"{len(objects) - len(reached)} objects beside a message are named by none of it.")


def _head(objects: Mapping[str, bytes], name: str) -> tuple[str, list[str]]:
    """Kind and children of an object."""
    if name not in objects:
        raise IdentityError(f"An object of a message is missing: {name[:64]!r}.")
    try:
        validate_object_content(objects[name])
    except UnexpectedObjectContentError as error:
        raise IdentityError("An object of a message is not one of Flower's.") from error
    kind, children, _ = get_object_head_values_from_object_content(objects[name])
    if kind not in _CHILDREN or len(set(children)) != len(children):
        raise IdentityError(f"An object of a message is a {kind!r}, or names a child twice.")
    return kind, children


def _array_bytes(objects: Mapping[str, bytes], name: str, children: list[str]) -> int:
    """What an array takes once its chunks are put together, besides the chunks themselves."""
    content = objects[name]
    try:
        chunks = json.loads(content[content.index(b"\0") + 1 :])["arraychunk_ids"]
        return len(content) + sum(len(objects[children[place]]) for place in chunks)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise IdentityError("An array of a message names chunks that it does not have.") from error
