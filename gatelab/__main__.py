"""The `gatelab` command."""

import sys
from importlib.util import find_spec

BENCH = ("click", "rich", "jinja2", "matplotlib")


def main() -> None:
    """Run the command line; without the bench's packages say how to get them and exit with 2."""
    missing = [name for name in BENCH if find_spec(name) is None]
    if missing:
        print(f"gatelab: {', '.join(missing)} not installed; pip install 'gatelab[bench]'", file=sys.stderr)
        sys.exit(2)
    from gatelab.bench.cli import run

    run()


if __name__ == "__main__":
    main()
