"""One thread: small tensor operations are slower with two threads that compete,
and results then do not depend on cores.
"""

from __future__ import annotations

import torch

torch.set_num_threads(1)
