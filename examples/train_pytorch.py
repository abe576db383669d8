"""Train a tiny MoE model in plain PyTorch, with gradient accumulation and activation checkpointing.

    python examples/train_pytorch.py

Checkpointed layers run again in the backward pass and every step sees several micro-batches; the gates' state still
moves once per step, to the bit as without checkpointing.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gatelab

VOCABULARY, HIDDEN, EXPERTS, ACCUMULATE, STEPS = 64, 32, 4, 2, 5


class TinyModel(nn.Module):
    """Embedding, two MoE layers, output: next-token logits (B, S, V)."""

    def __init__(self, router: str = "balanced-assignment", checkpointed: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(
            gatelab.MoE(gatelab.create_router(router, HIDDEN, EXPERTS), gatelab.Experts(EXPERTS, HIDDEN, 2 * HIDDEN))
            for _ in range(2)
        )
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.checkpointed = checkpointed

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for moe in self.layers:
            # use_reentrant=False: the reentrant kind runs the layer under no_grad, and its losses lose their gradient.
            y = checkpoint(lambda x, moe=moe: moe(x)[0], x, use_reentrant=False) if self.checkpointed else moe(x)[0]
            x = x + y
        return self.head(x)


def batches(seed: int = 0) -> list[Tensor]:
    """STEPS · ACCUMULATE micro-batches (B, S + 1) of a repeating pattern."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCABULARY, (STEPS * ACCUMULATE, 4, 1), generator=generator)
    return list((start + 3 * torch.arange(17)) % VOCABULARY)


def train(checkpointed: bool = True) -> TinyModel:
    """The loop: one tape per micro-batch, one update per optimizer step."""
    torch.manual_seed(0)
    model = TinyModel(checkpointed=checkpointed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tapes: list[gatelab.Tape] = []
    for step, ids in enumerate(batches(), start=1):
        with gatelab.record(model) as tape:
            logits = model(ids[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) + tape.aux_loss
        (loss / ACCUMULATE).backward()
        tapes.append(tape)
        if step % ACCUMULATE == 0:
            optimizer.step()
            optimizer.zero_grad()
            gatelab.update_routers(*tapes)
            tapes.clear()
            print(f"step {step // ACCUMULATE}: loss {loss.item():.3f}")
    return model


def router_state(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of every gate."""
    return {name: value for name, value in model.named_buffers() if ".router." in name}


if __name__ == "__main__":
    with_checkpoints, without = train(), train(checkpointed=False)
    for name, value in router_state(without).items():
        assert torch.equal(value, router_state(with_checkpoints)[name]), name
    print("router state is the same to the bit with and without activation checkpointing")
