"""`gatelab trace`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gatelab.bench.commands.output import PATH, json_option, print_json, progress
from gatelab.bench.trace.config import DTYPES, TraceConfig


@click.command()
@click.argument("model_dir", metavar="MODEL_DIR", type=PATH)
@click.option("--text", "texts", multiple=True, type=PATH, help="A UTF-8 file; repeat for more.")
@click.option("--out", type=PATH, default=Path("runs/trace"), help="Where to write.")
@click.option("--tokens", type=int, default=TraceConfig.tokens, help="At most so many of each text.")
@click.option("--sequence-length", type=int, default=TraceConfig.sequence_length, help="Tokens per window.")
@click.option("--record", type=int, default=TraceConfig.record, help="Tokens of each text whose routing is saved.")
@click.option(
    "--devices", type=int, help="G of the straggler factor [default: the largest divisor of the experts up to 8]."
)
@click.option("--dtype", default=TraceConfig.dtype, help=f"{', '.join(DTYPES)}; auto = the checkpoint's.")
@click.option("--device", default=TraceConfig.device, help="cpu, cuda or cuda:N.")
@click.option("--trust-remote-code", is_flag=True, help="Run Python code that lies in MODEL_DIR.")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights where there are no safetensors.")
@click.option("--seed", type=int, default=TraceConfig.seed, help="Of gates that draw even in evaluation.")
@json_option
def trace(model_dir: Path, texts: tuple[Path, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Routing of a real Hugging Face MoE checkpoint: balance, dead experts, specialisation, co-activation.

    MODEL_DIR is a local folder as save_pretrained writes it, tokenizer included. Several texts are compared as domains.
    Files written: see docs/trace.md.
    """
    from gatelab.bench.trace import run

    with progress() as bar:
        task = bar.add_task("starting", total=1)

        def on_progress(phase: str, done: int, total: int) -> None:
            bar.update(task, description=phase, completed=done, total=total)

        results = run(model_dir, texts, out, on_progress=on_progress, **options)
    if as_json:
        print_json(results)
    else:
        print(out / "trace.html")
