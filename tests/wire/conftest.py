"""Studies over the wire cost minutes: two of them run in `make prove` only, or when they are named.

What they show is shown elsewhere too, piece by piece: votes in tests/client/test_votes.py and in
tests/server/test_motions.py over the real service, PostgreSQL in tests/ledger and tests/server.
"""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("CAUSALDAO_PROVE") else ["test_governance.py", "test_postgres.py"]
