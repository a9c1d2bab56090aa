"""What needs Go runs in `make prove` only, or when it is named."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("CAUSALDAO_PROVE") else ["test_xmod.py"]
