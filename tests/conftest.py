"""Before anything imports Triton, which reads this once: the suite runs its kernels in the interpreter, on the CPU."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
