"""The command line, thin: one function per command that calls the library."""

from __future__ import annotations

import sys

import click

from gatelab.bench.commands.compare import compare
from gatelab.bench.errors import BadInput


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110})
@click.version_option(package_name="gatelab")
def cli() -> None:
    """Mixture-of-Experts gates: what they are, what they cost, and what they do to a model."""


cli.add_command(compare)


def run() -> None:
    """Run a command; whatever goes wrong is one line on stderr. Bad input exits with 2."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BadInput as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped; the same command goes on from here", 130)


def _fail(message: str, status: int) -> None:
    print("gatelab: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
