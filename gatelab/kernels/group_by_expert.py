"""Sorting assignments by expert."""

from torch import Tensor

from gatelab.kernels.backend import implementation


def group_by_expert(ids_TJ: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Group the choices of all tokens by expert, without a host synchronisation.

    Args:
        ids_TJ: (T, J) int64, the expert of each choice, in 0…E−1, or −1 for none.
        num_experts: E.

    Returns:
        `order` (T·J,) int64: the stable permutation of the flattened entries (t·J + j) that sorts them by expert,
        ascending inside an expert; the entries without an expert come last. `expert_offsets` (E+1,) int64: expert e
        owns `order[expert_offsets[e]:expert_offsets[e + 1]]`.

    Raises:
        ValueError: `ids_TJ` is not a matrix of integers.
    """
    if ids_TJ.ndim != 2 or ids_TJ.is_floating_point() or ids_TJ.is_complex():
        raise ValueError(f"ids_TJ is {ids_TJ.dtype} of shape {tuple(ids_TJ.shape)}; pass (T, J) integers, -1 for none")
    return implementation("group_by_expert", ids_TJ.device.type)(ids_TJ, num_experts)
