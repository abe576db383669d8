"""Train the same model with Hugging Face's Trainer, with gradient accumulation and activation checkpointing.

    pip install 'gatelab[hf]' accelerate
    python examples/train_trainer.py

`gatelab.attach(optimizer, model)` is all that a foreign loop needs: it moves the gates' state after each of its steps.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import gatelab

sys.path.insert(0, str(Path(__file__).parent))
from train_pytorch import ACCUMULATE, STEPS, TinyModel, batches, router_state, train


class WithLoss(nn.Module):
    """What Trainer wants: a model that returns its loss, here with the gates' own."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyModel(checkpointed=True)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        with gatelab.record(self.model) as tape:
            logits = self.model(ids[:, :-1])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()) + tape.aux_loss
        return {"loss": loss}


def train_with_trainer() -> TinyModel:
    """The steps of `train_pytorch.train`, in somebody else's loop."""
    torch.manual_seed(0)
    model = WithLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    gatelab.attach(optimizer, model)
    data = [{"ids": row} for batch in batches() for row in batch]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=ACCUMULATE,
            max_steps=STEPS,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    return model.model


if __name__ == "__main__":
    plain, trainer = router_state(train()), router_state(train_with_trainer())
    for name, value in plain.items():
        assert torch.equal(value, trainer[name]), name
    print("router state is the same to the bit in the plain loop and in Trainer")
