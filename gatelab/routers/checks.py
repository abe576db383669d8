"""Checks of options that many parts share."""

from __future__ import annotations

import math
from numbers import Real


def check_positive(**options: object) -> None:
    """Raise ValueError unless every option is a finite number above 0; None stands for an option left open."""
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise ValueError(f"{name}={value!r} must be a finite number above 0")
