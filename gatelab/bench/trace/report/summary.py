"""A trace in words: what was routed, what came out, and what to read with care."""

from __future__ import annotations

import math

from gatelab.bench.report.summary import Summary
from gatelab.bench.report.words import count, listing, number, percent, quantity, size
from gatelab.bench.trace.report.view import LayerView, View

FEW = 30  # assignments an expert should get before its load says much
UNKNOWN = 0.01


def summarise(view: View) -> Summary:
    findings = [_balance(view), _gate(view), *_tokens(view), *_domains(view), *_together(view), _devices(view)]
    return Summary(_headline(view), _setting(view), [*findings, _recorded(view)], _warnings(view))


def _headline(view: View) -> str:
    worst = view.worst("max_violation_global")
    dead, experts = (sum(layer[name] for layer in view.layers) for name in ("dead_experts", "num_experts"))
    idle = f"{dead:,} of {experts:,} experts got no token" if dead else "no expert is without tokens"
    where = f"the busiest expert of {worst.label}" if len(view.layers) > 1 else "the busiest expert"
    return f"{view.model['name']}: {where} gets {number(worst['imbalance'], 2)} times the mean load, and {idle}"


def _setting(view: View) -> str:
    m, c, machine = view.model, view.config, view.machine
    texts = listing([f"{text['name']} ({text['tokens']:,} tokens)" for text in view.texts])
    blocks = len(view.layers) + len(view.left_out)
    return (
        f"{m['class']}, {quantity(m['parameters'])} parameters in {m['dtype']}; {len(view.layers)} of "
        f"{count(blocks, 'MoE layer')} traced. Read: {texts}, in windows of {c['sequence_length']:,} tokens, at most "
        f"{c['tokens']:,} tokens of a text. On {machine['device']} with torch {machine['torch']} and transformers "
        f"{machine['transformers']}."
    )


def _span(view: View, name: str, digits: int = 2) -> str:
    """`0.35 (layer 4) to 1.20 (layer 0)`, or the one value there is."""
    low, high = view.best(name), view.worst(name)
    if len(view.layers) == 1:
        return number(low[name], digits)
    return f"{number(low[name], digits)} ({low.label}) to {number(high[name], digits)} ({high.label})"


def _where(view: View, layer: LayerView) -> str:
    """Which layer it is; nothing where there is one alone."""
    return f" ({layer.label})" if len(view.layers) > 1 else ""


def _balance(view: View) -> tuple[str, str]:
    few = view.best("load_entropy")
    return "Balance", (
        f"MaxVio of the summed load is {_span(view, 'max_violation_global')}; in single windows its mean is "
        f"{_span(view, 'max_violation')}. The least even load{_where(view, few)} "
        f"works like {number(few['effective_experts'], 1)} of {few['num_experts']} experts."
    )


def _gate(view: View) -> tuple[str, str]:
    return "Sureness", (
        f"Entropy of the gates over ln E: {_span(view, 'gate_entropy_share')} (1 = undecided). Lead of the best expert "
        f"over the second: {_span(view, 'top1_margin', 3)}."
    )


def _tokens(view: View) -> list[tuple[str, str]]:
    if not view.vocabulary["ids"]:
        return []
    most = view.worst("vocabulary_specialization")
    chance = sum(most["tokens_per_expert"]) / most["tokens"] / most["num_experts"]
    return [
        (
            "Vocabulary",
            "Share of a frequent token's occurrences that its favourite expert gets: "
            f"{_span(view, 'vocabulary_specialization')}; near {number(chance, 2)} if gates did not look at the token.",
        )
    ]


def _domains(view: View) -> list[tuple[str, str]]:
    if len(view.texts) < 2:
        return []
    layer = view.worst("domain_information")
    shares = layer["domain_specialization"]
    apart = [max(row[e] for row in shares) - min(row[e] for row in shares) for e in range(layer["num_experts"])]
    expert = max(range(len(apart)), key=apart.__getitem__)
    said = [f"{percent(row[expert])} of {text['name']}" for row, text in zip(shares, view.texts, strict=True)]
    return [("Domains", f"The texts part most in {layer.label}: expert {expert} is used by {listing(said)}.")]


def _together(view: View) -> list[tuple[str, str]]:
    layers = [layer for layer in view.layers if layer["pairs"]]
    if not layers:
        return []
    layer = max(layers, key=lambda layer: layer["pairs"][0]["rate"])
    pair = layer["pairs"][0]
    return [
        (
            "Partners",
            f"Closest pair: in {layer.label}, {percent(pair['rate'])} of the tokens of expert {pair['expert']} also "
            f"use expert {pair['with']}, {number(pair['lift'], 1)} times what their loads alone would give.",
        )
    ]


def _devices(view: View) -> tuple[str, str]:
    few = view.best("load_entropy")
    return "On devices", (
        f"Load of the fullest of {count(few['devices'], 'device')} over the mean in a window: "
        f"{_span(view, 'straggler_factor')}. Where loads are least even{_where(view, few)}, half of the assignments "
        f"fall on {few['experts_covering']['0.5']} of {few['num_experts']} experts."
    )


def _recorded(view: View) -> tuple[str, str]:
    r = view.recording
    if not r["windows"]:
        return "Recorded", "Nothing (--record 0)."
    return "Recorded", (
        f"{count(r['windows'], 'window')}, those within the first {r['limit']:,} tokens of each text, lie in "
        f"{r['folder']}/ ({size(r['bytes'])}) for the replay gate."
    )


def _left_out(view: View) -> list[str]:
    """Layers that share a reason in one line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in view.left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        f"Not traced: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}, because: {reason}."
        for reason, names in by_reason.items()
    ]


def _warnings(view: View) -> list[str]:
    found = _left_out(view)
    thin = min(view.layers, key=lambda layer: sum(layer["tokens_per_expert"]) / layer["num_experts"])
    assigned, experts = sum(thin["tokens_per_expert"]), thin["num_experts"]
    if assigned < FEW * experts:
        chance = math.sqrt(2 * math.log(max(experts, 2)) * experts / max(assigned, 1))
        found.append(
            f"Little text: an expert gets {number(assigned / experts, 1)} assignments on average, so that chance alone "
            f"gives a MaxVio near {number(chance, 1)} and leaves experts empty. Pass more text."
        )
    found += [
        f"The tokenizer does not know {percent(text['unknown'] / text['tokens'])} of the tokens of {text['name']}."
        for text in view.texts
        if text["unknown"] > UNKNOWN * text["tokens"]
    ]
    if not view.vocabulary["ids"]:
        found.append("No token id is frequent enough to say which expert it lives in. Pass more text.")
    return found
