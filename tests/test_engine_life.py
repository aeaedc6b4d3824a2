"""What a compiled engine promises over its life: the faster choice, a snapshot, plans, copies, threads and forks."""

import contextlib
import copy
import io
import os
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_capture import decomposed, lively
from test_engine import Tail, engine_of, expect_close, needs_native, small_net
from torch import nn

from splore.capture.compile import compile
from splore.engine.program_segment import ProgramSegment
from splore.vision.nets.residual import ResNet

pytestmark = pytest.mark.filterwarnings("ignore:the native library can't be loaded")


def test_compile_runs_the_faster_of_engine_and_torch(monkeypatch):
    monkeypatch.setattr("splore.capture.onnx_segment.PACKAGES", ("no_such_package",))
    x = torch.randn(2, 3, 16, 16)
    model = small_net()
    for ours, theirs in ((1.0, 2.0), (2.0, 1.0)):
        monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_, times=(ours, theirs): times)
        engine = compile(model, x, threads=1)
        expect_close(engine, model, x)
        assert engine.threads == 1
        assert engine.summary().startswith("Runs the dense network in torch, 1 ms") == (theirs < ours)


@pytest.mark.parametrize("times", [(1.0, 2.0), (2.0, 1.0)])  # the engine wins, or the dense network does
def test_an_engine_keeps_computing_what_it_was_compiled_from(times, monkeypatch):
    normalised = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = decomposed(nn.Sequential(normalised, head), 2, 0.3).eval()
    monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_: times)
    x = torch.randn(9, 3, 12, 12)
    engine = compile(model, x[:2])
    expected = model(x).detach()
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.mul_(1.5)
    torch.testing.assert_close(engine(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(engine(x[:2]), expected[:2], rtol=1e-4, atol=1e-5)


@needs_native
def test_parts_in_torch_run_on_one_thread_where_that_is_faster(monkeypatch):
    from splore.engine import openmp

    if openmp._library() is None:
        pytest.skip("this torch runs on no OpenMP that is found")
    x = torch.randn(2, 3, 16, 16)
    torch.set_num_threads(2)
    try:
        seen = []
        model = Tail().eval()
        for faster in ((2.0, 1.0), (1.0, 2.0)):
            times = iter([faster, (1.0, 2.0), (1.0, 2.0)])
            monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_, times=times: next(times))
            engine = compile(model, x)
            assert ("run on one thread" in engine.summary()) == (faster[1] < faster[0])
            with openmp.one_thread() if engine._one_thread else contextlib.nullcontext():
                seen.append(torch.get_num_threads())
            expect_close(engine, model, x)
            assert torch.get_num_threads() == 2
        assert seen == [1, 2]
        with openmp.one_thread(), ThreadPoolExecutor(1) as other:  # it is the thread's, not the process's
            assert other.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(1)


@needs_native
def test_the_summary_says_how_many_weights_were_folded():
    model = decomposed(lively(ResNet(8, 10, 3)), 3, 0.4)
    for kernel, verdict in (
        ("low rank", "batch 9: runs the weights as they are\n"),
        ("dense", "as dense ones, which were"),
    ):
        engine = engine_of(model, torch.randn(1, 3, 16, 16))
        engine._segments[0]._native.force(kernel)
        expect_close(engine, model, torch.randn(9, 3, 16, 16))
        assert verdict in engine.summary()


@needs_native
def test_summary_shows_each_operation():
    engine = engine_of(small_net(), torch.randn(4, 3, 16, 16), threads=2)
    assert "not planned yet" in engine.summary()
    engine.plan(4)
    engine(torch.randn(4, 3, 16, 16))
    lines = engine.summary().splitlines()
    assert "2 threads, batch 4" in lines[0]
    assert lines[1].split() == ["operation", "name", "output", "weight", "kernel", "ms", "GMAC/s", "of", "peak"]
    (row,) = [line for line in lines if "stage1.0.conv2" in line]
    assert row.startswith("conv 3x3 + add + relu") and "16x16x16" in row and "rank 2 + " in row
    (step, *_) = engine.steps()
    images, threads = (f"{step[key]} {key[:-1]}{'s' * (step[key] > 1)}" for key in ("images", "threads"))
    assert "stored multiply-adds an image" in lines[-2]
    assert lines[-2].endswith(f" ms for {images} at a time by {threads}")
    assert lines[-1].startswith("all plans: 1 slice, ") and lines[-1].endswith("of at most 256 MiB of packed weights")


def test_two_engines_in_two_threads():
    models = [small_net(seed) for seed in (0, 1)]
    engines = [engine_of(model, torch.randn(1, 3, 16, 16)) for model in models]
    x = torch.randn(9, 3, 16, 16)
    expected = [engine(x) for engine in engines]
    found: list[list[torch.Tensor]] = [[], [], [], []]

    def work(index: int) -> None:
        found[index] = [engines[index % 2](x) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, results in enumerate(found):
        assert len(results) == 20
        assert all(torch.allclose(result, expected[index % 2], rtol=1e-4, atol=1e-5) for result in results)


def programs(engine):
    return [segment for segment in engine._segments if isinstance(segment, ProgramSegment)]


def through_torch(engine):
    file = io.BytesIO()
    torch.save(engine, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_an_engine_may_be_pickled_and_copied():
    x = torch.randn(3, 3, 16, 16)
    for model in (small_net(), Tail().eval()):
        engine = engine_of(model, x, threads=1)
        engine.plan(3)
        for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine), through_torch(engine)):
            assert [s.save_plans() for s in programs(other)] == [s.save_plans() for s in programs(engine)]
            assert (other.input, other.output, other.threads) == (engine.input, engine.output, 1)
            torch.testing.assert_close(other(x), engine(x))


def test_a_deterministic_engine():
    x = torch.randn(20, 3, 16, 16)
    model = small_net()
    first = compile(model, x[:1], threads=1, deterministic=True)
    second = compile(model, x, threads=2, batches=[3], deterministic=True)
    expect_close(first, model, x)
    y = first(x)
    for images in (1, 3, 20):
        assert torch.equal(second(x[:images]), y[:images])
    with pytest.raises(ValueError, match="promises no result to the bit:\n.*\n.*cumsum"):
        compile(Tail().eval(), x, deterministic=True)


@needs_native
def test_sizes_are_planned_ahead(monkeypatch):
    monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_: (1.0, 2.0))
    x = torch.randn(9, 3, 16, 16)
    engine = compile(small_net(), x[:2], threads=2, batches=[9, 5])
    for images, planned in ((9, True), (5, True), (2, True), (4, False)):
        engine(x[:images])
        assert ("runs by the plans of others" in engine.summary()) != planned
    engine.plan(4)
    engine(x[:4])
    assert "runs by the plans of others" not in engine.summary()
    with pytest.raises(ValueError, match="at least 1, found 0"):
        engine.plan(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_runs_after_a_fork():
    engine = engine_of(small_net(), torch.randn(1, 3, 16, 16), threads=2)
    x = np.random.default_rng(0).standard_normal((9, 3, 16, 16)).astype(np.float32)
    expected = engine(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside other threads
        child = os.fork()
    if child == 0:
        os._exit(0 if np.allclose(engine(x), expected, rtol=1e-4, atol=1e-5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_allclose(engine(x), expected, rtol=1e-4, atol=1e-5)
