"""Training by CUDA graphs: what is captured, and when; on a GPU, that it trains as without."""

import contextlib

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests_support import plain
from torch import nn

from splore.design.decompose import Design, decompose
from splore.design.layers import decomposed_layers
from splore.train.attach import attach
from splore.train.passes import WARMUP, Graphed, Passes

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def entropy(outputs, labels, images):
    return nn.functional.cross_entropy(outputs, labels)


class Recorder:
    """A stand-in for CUDA's graphs where there is no GPU: it notes captures, and a replay does nothing."""

    def __init__(self):
        self.captures = self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()

    @contextlib.contextmanager
    def capture(graph):
        made.captures += 1
        yield

    class Stream:
        def __init__(self, device):
            pass

        def wait_stream(self, other):
            assert isinstance(other, Stream)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Stream)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    return made


def passes_of(net, **how):
    AcceleratorState._reset_state()
    return Passes(net, entropy, Accelerator(**how))


def graphed(net, samples=8):
    return Graphed(passes_of(net, cpu=True), samples), torch.randn(samples, 1, 6, 6)


def test_captured_once_for_batches_of_the_size(recorder):
    net = plain(4)
    calls = []
    net.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    passes, x = graphed(net)
    y = torch.arange(8) % 4
    for n in (8, 8, 5, 8):
        value, outputs = passes(x[:n], y[:n])
        assert outputs.shape == (n, 4) and not value.requires_grad
        assert all(p.grad is not None for p in net.parameters())
        net.zero_grad(set_to_none=True)
    assert recorder.captures == 1 and recorder.replays == 3
    assert calls == [8] * (WARMUP + 1) + [5]


def test_captured_anew_where_ranks_or_masks_change(recorder):
    net = plain(4)
    decompose(net, Design(rank=2))
    passes, x = graphed(net)
    layer = next(iter(decomposed_layers(net).values()))
    y = torch.zeros(8, dtype=torch.int64)
    for change in (
        lambda: None,
        lambda: layer.set_parts(layer.A[:, :1], layer.B[:1]),
        lambda: layer.mask[0].fill_(False),
    ):
        change()
        passes.renew()
        passes(x, y)
        passes.renew()
        passes(x, y)
    assert recorder.captures == 3


def test_statistics_and_random_numbers_are_as_before_the_capture(recorder):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(32, 4))
    passes, x = graphed(net)
    before = torch.get_rng_state()
    passes(x, torch.zeros(8, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(net[1].running_mean, torch.zeros(2)) and net[1].num_batches_tracked == 0


def test_a_net_that_cannot_be_captured(recorder, monkeypatch):
    def fails(graph):
        raise RuntimeError("operation not permitted when stream is capturing\nsee the manual")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    passes, x = graphed(plain(4))
    with pytest.raises(ValueError, match=r"hardware.cuda_graphs: .* set it to false \(operation not permitted[^\n]*\)"):
        passes(x, torch.zeros(8, dtype=torch.int64))


def trained(graphs, precision):
    """The weights of a small net on the GPU after some steps, a cut of ranks and entries, and some more steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).cuda()
    decompose(net, Design(rank=2))
    passes = passes_of(net, mixed_precision=precision)
    passes = Graphed(passes, 16) if graphs else passes
    for _ in range(2):
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, fused=graphs)
        held = attach(net, optimizer, l1=1e-2, frobenius=1e-3)
        if graphs:
            passes.renew()
        for step in range(6):
            torch.manual_seed(step)
            samples = 10 if step == 4 else 16
            passes(torch.randn(samples, 3, 8, 8).cuda(), torch.randint(4, (samples,)).cuda())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        held.remove()
        for layer in decomposed_layers(net).values():
            layer.set_parts(layer.A[:, :1], layer.B[:1], layer.S, layer.S.abs() > layer.S.abs().median())
    return net.state_dict()


@GPU
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_trains_as_without_graphs(precision):
    with_graphs, without = trained(True, precision), trained(False, precision)
    assert with_graphs.keys() == without.keys()
    for name, value in without.items():
        torch.testing.assert_close(with_graphs[name], value, rtol=1e-2, atol=1e-4, msg=name)
