"""How much memory a process has held."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def most_held(pid: int | str = "self") -> int:
    """Bytes of memory that a process has held at most since its program began; 0 if it has ended, or where the kernel
    does not say. (What `getrusage` tells may be of the process that started it.)"""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
