"""Whether arrays from a file keep the contract of `Routing`: what contradicts it, in words.

Axes: T tokens, E experts, N assignments, O = E + 1 offsets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

INTEGER, FLOAT, BOOL = ("int64",), ("float32", "float64"), ("bool",)
PLAIN = (*BOOL, "uint8", "int8", "int16", "int32", *INTEGER, *FLOAT)
FIELDS = {
    "num_tokens": ("", INTEGER),
    "weights_on_input": ("", BOOL),
    "token_index": ("N", INTEGER),
    "expert_offsets": ("O", INTEGER),
    "weights": ("N", FLOAT),
    "choice": ("N", INTEGER),
    "token_mask": ("T", BOOL),
    "router_logits": ("TE", FLOAT),
    "scores": ("TE", FLOAT),
    "probabilities": ("TE", FLOAT),
    "requested": ("E", INTEGER),
}
OPTIONAL = {"token_mask"}

Arrays = Mapping[str, np.ndarray]


def problem(arrays: Arrays) -> str | None:
    """What contradicts the contract, or None.

    Args:
        arrays: the fields by name, `losses/<name>` and `statistics/<name>`.
    """
    return _malformed(arrays) or _wrong_sizes(arrays) or _wrong_values(arrays)


def _malformed(arrays: Arrays) -> str | None:
    """Arrays that are missing, unknown, or of a type or number of axes that the field does not have."""
    if missing := FIELDS.keys() - OPTIONAL - arrays.keys():
        return f"{', '.join(sorted(missing))} missing"
    for name, array in arrays.items():
        group = name.partition("/")[0]
        if name in FIELDS:
            axes, kinds = FIELDS[name]
        elif group in ("losses", "statistics"):
            axes, kinds = ("", FLOAT) if group == "losses" else ("?" * array.ndim, PLAIN)
        else:
            return f"{name!r} is no field"
        if array.ndim != len(axes) or array.dtype.name not in kinds:
            return f"{name} is {_form(array)}; {' or '.join(kinds)} with {len(axes)} axes is due"
    return None


def _wrong_sizes(arrays: Arrays) -> str | None:
    offsets = len(arrays["expert_offsets"])
    size = {"N": len(arrays["token_index"]), "O": offsets, "E": offsets - 1, "T": int(arrays["num_tokens"])}
    for name, (axes, _) in FIELDS.items():
        shape = tuple(size[axis] for axis in axes)
        if name in arrays and arrays[name].shape != shape:
            return f"{name} is {_form(arrays[name])}; shape {shape} is due"
    return None


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _wrong_values(arrays: Arrays) -> str | None:
    offsets, tokens, choice = arrays["expert_offsets"], arrays["token_index"], arrays["choice"]
    T, E, N = int(arrays["num_tokens"]), len(offsets) - 1, len(tokens)
    if E < 1 or offsets[0] != 0 or offsets[-1] != N or (np.diff(offsets) < 0).any():
        return "expert_offsets do not ascend from 0 to the number of assignments"
    if N and (tokens.min() < 0 or tokens.max() >= T):
        return "token_index is out of range"
    if N and (choice.min() < 0 or choice.max() >= E):
        return "choice is out of range"
    load = np.diff(offsets)
    if (np.diff(np.repeat(np.arange(E), load) * T + tokens) <= 0).any():
        return "token_index does not ascend inside an expert"
    if len(np.unique(tokens * E + choice)) < N:
        return "choice stands twice at a token"
    if (arrays["requested"] < load).any():
        return "requested is less than what the experts have"
    real = arrays.get("token_mask", np.ones(T, dtype=bool))
    if not real[tokens].all():
        return "a token that token_mask leaves out has an expert"
    for name, values in (("weights", arrays["weights"]), ("probabilities", arrays["probabilities"][real])):
        if not np.isfinite(values).all():
            return f"{name} are not finite"
    return None
