"""`MoE`: a gate over experts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gatelab.layers.experts import Experts
from gatelab.routers.router import Router
from gatelab.routers.routing import Routing


class MoE(nn.Module):
    """y = Σ_e weight_e(x) · expert_e(x) + shared(x).

        moe = gatelab.MoE(gatelab.create_router("topk-softmax", 64, 8), gatelab.Experts(8, 64, 256))
        y, routing = moe(x)

    Args:
        router: the gate.
        experts: `Experts`, or any module (x_TD, routing) -> y_TD.
        shared: a module x -> y that every token passes through, or None.
    """

    def __init__(self, router: Router, experts: Experts | nn.Module, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.router, self.experts, self.shared = router, experts, shared

    def forward(
        self,
        x: Tensor,
        *,
        token_mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        labels: Tensor | None = None,
        previous: Routing | None = None,
        forced: Tensor | None = None,
        cache: dict[Any, Any] | None = None,
    ) -> tuple[Tensor, Routing]:
        """Route, apply the experts, combine.

        Args:
            x: (B, S, D) or (T, D). The other arguments are handed to the router: see `Router.forward`.

        Returns:
            y in the shape and dtype of x, and the Routing. Masked tokens get the shared expert's output alone.
        """
        routing = self.router(
            x,
            token_mask=token_mask,
            token_ids=token_ids,
            labels=labels,
            previous=previous,
            forced=forced,
            cache=cache,
        )
        x_TD = x.reshape(-1, x.shape[-1])
        y_TD = self.experts(x_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.to(x.dtype).view(x.shape), routing

    def as_block(self) -> nn.Module:
        """This layer as a module that returns y alone, for `nn.Sequential`, pipelines and Hugging Face layers."""
        return _Block(self)


class _Block(nn.Module):
    def __init__(self, moe: MoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.moe(x, **kwargs)[0]
