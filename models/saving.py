"""A model as one safetensors file: its tensors, and beside them its description as JSON. Nothing in it is code."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from causaldao.errors import DataError

Array = npt.NDArray[Any]
Layout = Mapping[str, tuple[tuple[int, ...], str]]


def write_model(path: str | PathLike[str], tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write tensors and description as one file."""
    metadata = {"model": json.dumps(meta, sort_keys=True)}
    Path(path).write_bytes(safetensors.numpy.save(dict(tensors), metadata=metadata))


def read_model(path: str | PathLike[str]) -> tuple[dict[str, Array], Any]:
    """(tensors, description), unchecked. Raises DataError when the file is absent or is not such a model."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            description = (file.metadata() or {}).get("model", "")
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        return tensors, json.loads(description)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"Couldn't read a model from {path}: {error}. Expected what save() writes.") from error


def tensor_problems(tensors: Mapping[str, Array], layout: Layout, positive: Collection[str]) -> tuple[str, ...]:
    """Each tensor that is missing, extra, of another shape or type, not finite, or not > 0 where it must be."""
    problems = [f"{name}: not expected." for name in sorted(set(tensors) - set(layout))]
    for name, (shape, dtype) in layout.items():
        if name not in tensors:
            problems.append(f"{name}: missing.")
        elif (tensors[name].shape, str(tensors[name].dtype)) != (shape, dtype):
            problems.append(f"{name}: {tensors[name].dtype}{tensors[name].shape}, expected {dtype}{shape}.")
        elif not np.isfinite(tensors[name]).all():
            problems.append(f"{name}: holds values that are not finite.")
        elif name in positive and not (tensors[name] > 0).all():
            problems.append(f"{name}: smallest value {tensors[name].min():.3g}, expected > 0.")
    return tuple(problems)
