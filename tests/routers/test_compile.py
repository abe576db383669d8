"""`torch.compile(fullgraph=True)`: one graph per gate, forward and backward, with the eager result."""

import pytest
import torch

import gatelab
from gatelab import testing

D, E = 16, 5
# name -> why there is no single graph. A gate that no longer belongs here fails its test.
EXCEPTIONS: dict[str, str] = {}


# Evaluation has no backward to trace; its graph alone is checked.
@pytest.mark.parametrize(
    ("training", "backend"), [(True, "aot_eager"), (False, "eager")], ids=["training", "evaluation"]
)
@pytest.mark.parametrize("name", gatelab.list_routers())
def test_one_graph_with_the_eager_result(name, training, backend):
    torch._dynamo.reset()
    options = {}
    if name == "replay":
        source = gatelab.create_router("topk-softmax", D, E)
        options["routing"] = testing.route(source, testing.make_batch(source, D, masked=True))
    torch.manual_seed(0)
    router = gatelab.create_router(name, D, E, **options).train(training)
    batch = testing.make_batch(router, D, masked=True)
    compiled = torch.compile(router, fullgraph=True, backend=backend)
    if name in EXCEPTIONS:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            testing.route(compiled, batch)
        return
    results = []
    for call in (router, compiled):
        hidden = batch.hidden.clone().requires_grad_(training)
        routing = testing.route(call, batch.with_hidden(hidden))
        loss = routing.to_dense().square().sum() + routing.aux_loss
        grads = [hidden, *router.parameters()]
        if training and loss.requires_grad:
            loss.backward()
        results.append((routing.to_dense().detach(), [None if g.grad is None else g.grad.clone() for g in grads]))
        router.zero_grad()
    (eager, eager_grads), (traced, traced_grads) = results
    torch.testing.assert_close(traced, eager)
    for a, b in zip(traced_grads, eager_grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
