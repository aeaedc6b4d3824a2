"""Many callers of a native engine: threads, forks, and plans for sizes that come and go."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kernels import ISAS, conv_program
from programs import floats, random_program

from splore.engine import reference
from splore.engine.native import NativeError, NativeProgram

pytestmark = [
    pytest.mark.skipif(not ISAS, reason="the native library is not built"),
    pytest.mark.usefixtures("fast_plans"),
]


def test_threads_and_forks():
    programs = [random_program(seed) for seed in (11, 12)]
    inputs = [floats(np.random.default_rng(0), 5, *program.input) for program in programs]
    engines = [NativeProgram(program, threads=2) for program in programs]
    for engine in engines:
        engine.plan(5)
    wants = [engine.run(x) for engine, x in zip(engines, inputs, strict=True)]
    wrong = []

    def work(index: int) -> None:
        for _ in range(30):
            if not np.allclose(engines[index].run(inputs[index]), wants[index], 1e-4, 1e-4, equal_nan=True):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index % 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

    child = os.fork()
    if child == 0:
        right = all(
            np.allclose(e.run(x), w, 1e-4, 1e-4, equal_nan=True) for e, x, w in zip(engines, inputs, wants, strict=True)
        )
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    work(0)
    assert not wrong


def works_in_a_child(engine: NativeProgram, x: np.ndarray, wants: dict[int, np.ndarray]) -> bool:
    """Two threads come first, together; then the child's own calls, and a plan."""
    found = {}

    def call(images: int) -> None:
        found[images] = engine.run(x[:images])

    both = [threading.Thread(target=call, args=(images,)) for images in (40, 17)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    call(3)
    NativeProgram(engine.program, threads=2).plan(2)
    return all(np.allclose(found[images], want, atol=1e-4) for images, want in wants.items())


@pytest.mark.parametrize("plan", ["fast", ""])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_forked_during_calls_and_plans_goes_on_at_once(threads, plan, monkeypatch):
    monkeypatch.setenv("SPLORE_PLAN", plan)
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine = NativeProgram(program, threads=threads)
    x = floats(np.random.default_rng(3), 40, *program.input)
    wants = {images: engine.run(x[:images]) for images in (40, 3, 17)}
    over = threading.Event()

    def call(images: int) -> None:
        while not over.is_set():
            engine.run(x[:images])

    def plans() -> None:
        while not over.is_set():
            NativeProgram(program, threads=threads).plan(5)

    callers = [threading.Thread(target=call, args=(images,)) for images in (40, 3)] + [threading.Thread(target=plans)]
    for caller in callers:
        caller.start()
    ends = []
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                os._exit(0 if works_in_a_child(engine, x, wants) else 3)
            ends.append(os.waitpid(child, 0)[1])
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert not any(ends)


def test_callers_of_one_engine_run_at_once():
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine = NativeProgram(program, threads=2)
    x = floats(np.random.default_rng(3), 40, *program.input)
    for images in (1, 5, 16, 40):
        engine.plan(images)
    wants = [engine.run(x[:images]) for images in range(41)]
    wrong = []

    def work(seed: int) -> None:
        for images in np.random.default_rng(seed).integers(0, 41, 60):
            if not np.allclose(engine.run(x[:images]), wants[images], rtol=1e-4, atol=1e-4):
                wrong.append(images)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_size_without_a_plan_runs_by_the_plans_of_others(monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    x = floats(np.random.default_rng(3), 700, *program.input)
    want = reference.run(program, x)
    for planned in ((1,), (16,), (5, 40)):
        engine = NativeProgram(program, threads=2)
        for images in planned:
            engine.plan(images)
        slices = engine.report()["slices"]
        for images in (1, 2, 6, 15, 17, 33, 100, 700):
            np.testing.assert_allclose(engine.run(x[:images]), want[:images], rtol=1e-4, atol=1e-4)
            report = engine.report()
            assert (report["batch"], report["planned"]) == (images, images in planned)
            # One of full lanes joins, untimed, where only a single image was planned.
            assert report["slices"] == slices + (planned == (1,) and images > 15)


def test_the_first_run_waits_for_no_timing(monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    x = floats(np.random.default_rng(3), 40, *program.input)
    want = reference.run(program, x)
    engine = NativeProgram(program, threads=2)
    for images in (3, 40, 1):
        np.testing.assert_allclose(engine.run(x[:images]), want[:images], rtol=1e-4, atol=1e-4)
        report = engine.report()
        assert (report["planned"], report["timed"]) == (0, 0)
        assert not any(step["nanoseconds"] for step in report["steps"])
    assert engine.report()["slices"] > 1
    engine.plan(1)
    assert engine.report()["slices"] == 1  # what was made for want of a plan is gone
    np.testing.assert_allclose(engine.run(x), want, rtol=1e-4, atol=1e-4)


def test_saved_plans_are_the_plans(monkeypatch):
    for plan in ("", "fast"):
        monkeypatch.setenv("SPLORE_PLAN", plan)
        for seed in range(8):
            program = random_program(seed)
            engine, other = (NativeProgram(program, threads=2) for _ in range(2))
            assert engine.save_plans() == ""
            for images in (1, 3, 37):
                engine.plan(images)
            other.load_plans(engine.save_plans())
            assert other.save_plans() == engine.save_plans()
            x = floats(np.random.default_rng(seed), 37, *program.input)
            for images in (37, 3, 20):
                y = engine.run(x[:images])
                np.testing.assert_allclose(other.run(x[:images]), y, rtol=1e-4, atol=1e-4 * max(1, abs(y).max()))
                assert engine.report() | {"packed_bytes": 0} == other.report() | {"packed_bytes": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": "another"}, "made for the processor another, this is"),
        ({"isa": "another"}, "made for the instruction set another"),
        ({"threads": 3}, "a number of threads of 3, this is 2"),
        ({"version": "99.0"}, "the version 99.0"),
        ({"slices": []}, "from 0 to -1"),
        ({"plans": [{"batch": 9, "parts": [[0, 8]]}]}, "no whole batch"),
        ({"plans": [{"batch": 0, "parts": []}]}, "from 1 to"),
        ({"plans": [{"batch": 3}]}, "'parts' is missing"),
        ({"plans": [{"batch": 3, "parts": [[2**40, 3]]}]}, "from 0 to 0"),
        ({"plans": 3}, "expected a list"),
    ],
)
def test_plans_that_do_not_fit_are_refused(change, message):
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine, other = (NativeProgram(program, threads=2) for _ in range(2))
    engine.plan(3)
    with pytest.raises(NativeError, match=message):
        other.load_plans(json.dumps(json.loads(engine.save_plans()) | change))
    assert other.save_plans() == ""


def test_a_plan_of_kernels_that_are_no_candidates_is_refused():
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine, other = (NativeProgram(program, threads=2) for _ in range(2))
    engine.plan(3)
    saved = json.loads(engine.save_plans())
    (slice_,) = saved["slices"]
    (conv,) = [step for step in slice_["steps"] if step[1:]][:1]
    conv[1] = conv[1].replace("block", "block 1")
    with pytest.raises(NativeError, match="has no kernel"):
        other.load_plans(json.dumps(saved))
    for part, value in (("images", 99), ("team", 7), ("planar", 1), ("steps", []), ("nanoseconds", -1)):
        saved = json.loads(engine.save_plans())
        saved["slices"][0][part] = value
        with pytest.raises(NativeError):
            other.load_plans(json.dumps(saved))
    conv[1:] = []
    with pytest.raises(NativeError, match="incomplete"):
        other.load_plans(json.dumps(saved | {"slices": [slice_]}))
    with pytest.raises(NativeError):
        other.load_plans("")


def test_what_plans_hold_is_bounded():
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine = NativeProgram(program, threads=2, plan_bytes=1)
    x = floats(np.random.default_rng(3), 9, *program.input)
    want = reference.run(program, x)
    for images in (2, 9, 1):
        engine.plan(images)
        np.testing.assert_allclose(engine.run(x[:images]), want[:images], rtol=1e-4, atol=1e-4)
    report = engine.report()
    assert (report["slices"], report["most_bytes"]) == (1, 1)
    assert engine.packed_bytes == report["packed_bytes"] > 0


def test_equal_packings_are_held_once():
    program = conv_program(3, 40, 40, (12, 12), 3, 0.3, 0)
    engine = NativeProgram(program, threads=2)
    engine.plan(32)  # each thread by itself
    once = engine.packed_bytes
    engine.plan(16)  # both threads together, in the same layout
    assert engine.report()["slices"] == 2
    assert engine.packed_bytes == once


@pytest.mark.parametrize("isa", ISAS)
def test_deterministic_results_are_equal_to_the_bit(isa, monkeypatch):
    monkeypatch.delenv("SPLORE_PLAN")
    for seed in range(20):
        program = random_program(seed)
        x = floats(np.random.default_rng(seed), 37, *program.input)
        want = NativeProgram(program, isa, threads=1, deterministic=True).run(x)
        for threads, sizes in ((2, (1, 2, 16, 37)), (3, (37, 3))):
            engine = NativeProgram(program, isa, threads=threads, deterministic=True)
            for images in sizes:
                found = engine.run(x[:images])
                assert found.tobytes() == want[:images].tobytes()


def test_helpers_leave_signals_to_the_program_and_sleep():
    program = conv_program(3, 12, 16, (12, 12), 3, 0.3, 2)
    engine = NativeProgram(program, threads=3)
    engine.run(floats(np.random.default_rng(3), 9, *program.input))
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
    if sys.platform == "linux":
        blocked = [
            int(line.split()[1], 16)
            for task in Path("/proc/self/task").iterdir()
            for line in (task / "status").read_text().splitlines()
            if line.startswith("SigBlk")
        ]
        assert sum(mask >> (signal.SIGTERM - 1) & 1 for mask in blocked) >= 2
