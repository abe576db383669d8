"""State under data parallelism: two ranks move as one that saw both batches."""

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import gatelab
from gatelab.routers.balance import Balance


class Follow(Balance):
    """State that shows what an update was given."""

    stateful = True

    def __init__(self):
        super().__init__()
        self.register_buffer("requested", torch.zeros(4))
        self.register_buffer("mark", torch.zeros(()))

    def losses(self, ctx):
        ctx.statistics["mark"] = ctx.hidden.mean()
        return {}

    def update(self, summaries):
        self.requested.copy_(sum(s.requested for s in summaries))
        self.mark.copy_(sum(s.statistics["mark"] for s in summaries) / len(summaries))


def make():
    torch.manual_seed(0)
    score = gatelab.create_router("topk-softmax", 8, 4).score
    return gatelab.Router(score=score, select=gatelab.routers.select.TopK(1), balance=[Follow()])


def batch(rank):
    return torch.randn(10, 8, generator=torch.Generator().manual_seed(rank))


def run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    router = make()
    with gatelab.record(router) as tape:
        router(batch(rank))
    gatelab.update_routers(tape, group=dist.group.WORLD)
    torch.save(router.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_move_as_one(tmp_path):
    spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    single = make()
    with gatelab.record(single) as tape:
        for rank in range(2):
            single(batch(rank))
    gatelab.update_routers(tape)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        # Counts are summed over ranks, statistics averaged.
        assert torch.equal(state["balance.0.requested"], single.balance[0].requested)
        torch.testing.assert_close(state["balance.0.mark"], single.balance[0].mark)
