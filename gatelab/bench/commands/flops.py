"""`gatelab flops`."""

from __future__ import annotations

import click

from gatelab.bench.commands.output import json_option, print_json, seed_option
from gatelab.bench.errors import BadInput
from gatelab.zoo import flops_rows, render_model, render_table


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--context", type=int, default=4096, help="Positions a token attends to, itself included.")
@seed_option
@json_option
def flops(models: tuple[str, ...], context: int, as_json: bool) -> None:
    """Published models: parameters, active parameters, FLOPs per token and the router's share; none named = all."""
    try:
        rows = flops_rows(models or None, context)
        if as_json:
            print_json(rows)
        elif models:
            print("\n\n".join(render_model(name, context) for name in dict.fromkeys(models)))
        else:
            print(render_table(rows))
    except ValueError as error:
        raise BadInput(str(error)) from error
