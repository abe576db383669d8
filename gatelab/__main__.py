"""The `gatelab` command."""

import sys


def main() -> None:
    """Run the command line; without the bench's packages say how to get them and exit with 2."""
    try:
        from gatelab.bench.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich", "jinja2", "matplotlib"):
            raise
        print(f"gatelab: {error.name} is missing; pip install 'gatelab[bench]'", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
