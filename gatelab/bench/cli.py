"""The command line, thin: one function per command that calls the library."""

from __future__ import annotations

import sys

import click

from gatelab.bench.commands.compare import compare
from gatelab.bench.commands.flops import flops
from gatelab.bench.commands.list import list_gates
from gatelab.bench.commands.report import report
from gatelab.bench.commands.speed import speed
from gatelab.bench.commands.trace import trace
from gatelab.bench.errors import BadInput, CannotWrite, CellFailed

COMMANDS = (list_gates, compare, speed, flops, trace, report)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110})
@click.version_option(package_name="gatelab")
def cli() -> None:
    """Mixture-of-Experts gates: what they are, what they cost, and what they do to a model."""


for command in COMMANDS:
    cli.add_command(command)


def run() -> None:
    """Run a command; whatever goes wrong is one line on stderr. Bad input exits with 2."""
    try:
        status = cli.main(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BadInput as error:
        _fail(str(error), 2)
    except (CannotWrite, CellFailed) as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        _fail("stopped; nothing finished is lost", 130)


def _fail(message: str, status: int) -> None:
    print("gatelab: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)
