"""Tables of the docs that are made from the code, so that they cannot go stale. `make docs` rewrites them.

python docs/tables.py [--check]
"""

import sys
from pathlib import Path

import gatelab
from gatelab import Guarantees

ROOT = Path(__file__).parent.parent


def guarantees_table() -> str:
    """Markdown: one row per gate, its guarantees in training / evaluation at its published K and E = 64."""
    columns = ("gate", "causal", "token-wise", "max load", "dropless", "experts per token", "state")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    return head + "".join(_row(name) for name in gatelab.list_routers())


def _row(name: str) -> str:
    described = _described(name)
    cells = [
        _both(described.training, described.evaluation, field)
        for field in ("causal", "token_wise", "max_load", "dropless", "experts_per_token", "stateful")
    ]
    return f"| `{name}` | " + " | ".join(cells) + " |\n"


def _described(name: str) -> gatelab.routers.registry.Description:
    try:
        return gatelab.describe_router(name)
    except ValueError:
        return gatelab.describe_router(name, num_experts=1)


def _both(training: Guarantees, evaluation: Guarantees, field: str) -> str:
    a, b = (_text(field, getattr(g, field)) for g in (training, evaluation))
    return a if a == b else f"{a} / {b}"


def _text(field: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "any" if field == "max_load" else "varies"
    return f"{value:g}"


def inserted(text: str, name: str, body: str) -> str:
    """`text` with what stands between the comments <!-- name --> and <!-- /name --> replaced."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(start)
    return f"{before}{start}\n{body}{end}{rest.split(end)[1]}"


def main(check: bool) -> int:
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = inserted(old, "guarantees", guarantees_table())
    if not check:
        path.write_text(new, encoding="utf-8")
    elif new != old:
        print("README.md is stale; run make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
