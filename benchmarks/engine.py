"""The engine beside the dense network in other runtimes, in one run.

    python benchmarks/engine.py --net vgg19 --kept 0.03 --rank 4 --batch 1 32 --json results.json

Every runtime gets the same weights, folded dense, and its results are compared with the dense network in PyTorch before
anything is timed. With `--bits 8 --block 4` the engine runs in eight bits, its sparse part in blocks; what runs in
eight bits or in bfloat16 is off by what rounding makes, and says by how much. The runtimes then take turns, so that a
busy moment of the machine meets all of them; a figure is the median of `--repeats` such turns.
"""

import argparse
import copy
import gc
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from int8_runtimes import onnx_int8_file, openvino_int8_file
from networks import Structure, images, network
from rows import add_row
from runtimes import CALIBRATION, PEERS, Run, export, missing, quiet, versions

from splore.capture.compile import compile
from splore.capture.export import densified
from splore.deploy.memory import peak_mib
from splore.engine.engine import Engine, run_torch
from splore.measure.provenance import provenance
from splore.postprocess.quantize import quantize

TOLERANCE = 1e-4  # of the largest result, for whatever runs in float32
ROUNDED = 0.2  # the same in eight bits and in bfloat16, on random weights
SAMPLE = 0.05  # seconds that a timed sample takes at least, as a sum of runs
PAUSE = 0.01  # seconds between two samples, at least
# The peers whose peak memory is measured, and what makes the file that they read of the dense one.
BY_FILE = {
    "ONNX Runtime": None, "OpenVINO": None, "ONNX Runtime int8": onnx_int8_file, "OpenVINO int8": openvino_int8_file,
}  # fmt: skip


def main() -> int:
    options = arguments()
    quiet()
    torch.set_num_threads(options.threads)
    peers = chosen_peers(options.peers)
    structure = Structure(options.kept, options.rank, block=options.block)
    model, kept = network(options.net, structure)
    print(f"{options.net}: keeps {kept:.4g} of the parameters (rank {options.rank:g}), {options.threads} threads")
    for batch in options.batch:
        row = measure(model, options, batch, peers) | {"kept": round(kept, 5)}
        if options.json:
            add_row(options.json, row, ("net", "kept", "rank", "batch", "threads", "size", "bits", "block"))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="vgg19", help="vgg19, preactresnet56, resnet50, torchvision:NAME or timm:NAME")
    parser.add_argument("--kept", type=float, default=0.03, help="share of the parameters that is kept")
    parser.add_argument(
        "--rank", type=float, default=4, help="rank of every layer, or below 1 the share of L in a layer"
    )
    parser.add_argument("--bits", type=int, choices=(8, 32), default=32, help="of the engine's numbers")
    parser.add_argument("--block", type=int, choices=(1, 4), default=1, help="input channels of a block of S")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images at a time")
    parser.add_argument("--threads", type=int, default=2, help="of every runtime")
    parser.add_argument("--size", type=int, help="height and width of the images")
    parser.add_argument("--repeats", type=int, default=20, help="timed turns of every runtime")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="what to compare with")
    parser.add_argument("--layers", action="store_true", help="print the plan: kernels, times, shares of the peak")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--json", type=Path, help="file of rows to add to; a row of the same measurement is replaced")
    return parser.parse_args()


def chosen_peers(names: list[str]) -> list[str]:
    for name in names:
        if missing(name):
            print(f"left out: {name}, because {', '.join(missing(name))} is not installed: pip install 'splore[bench]'")
    return [name for name in names if not missing(name)]


def measure(model: torch.nn.Module, options: argparse.Namespace, batch: int, peers: list[str]) -> dict:
    """One row: the engine and the peers on one batch size."""
    x = images(options.net, batch, options.size)
    dense = densified(model)[0]
    expected = run_torch(dense, [x.numpy()])[0]
    engine = compile(in_bytes(model, x) if options.bits == 8 else model, x, options.threads)
    runs: dict[str, Run] = {"engine": engine}
    for peer in peers:
        try:
            runs[peer] = PEERS[peer][1](dense, x, options.threads)
        except Exception as error:  # whatever a peer's compiler or converter raises
            print(f"left out: {peer}, because it can't run this network here: {error}")
    errors = {name: relative_error(run(x.numpy()), expected) for name, run in runs.items()}
    for name, error in errors.items():
        rounded = name.endswith(("int8", "bf16")) or (name == "engine" and options.bits == 8)
        if not error <= (ROUNDED if rounded else TOLERANCE):
            raise SystemExit(f"{name} differs from PyTorch by {error:.2g} of the largest result: not timed")
    times = interleaved_ms(runs, x.numpy(), options.repeats)
    medians = {name: round(median(samples), 4) for name, samples in times.items()}
    ours, others = medians.pop("engine"), medians
    row = {
        "net": options.net, "kept": options.kept, "rank": options.rank, "batch": batch, "threads": options.threads,
        "size": x.shape[-1], "bits": options.bits, "block": options.block, "engine_ms": ours, "peers": others,
        "speedup": round(min(others.values()) / ours, 3) if others else None, "max_error": errors["engine"],
        "errors": {name: float(f"{error:.3g}") for name, error in errors.items()},
        "spread": {name: [round(min(ms), 4), round(max(ms), 4)] for name, ms in times.items()},
        "n": options.repeats, "verdict": engine.summary().splitlines()[0], "packages": versions(),
    }  # fmt: skip
    if not options.no_memory:
        row["peak_mib"] = peaks(engine, dense, x, options.threads, peers)
    report(row, engine, options)
    del runs
    gc.collect()
    return row


def in_bytes(model: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """A copy of the model in eight bits, its ranges measured on the images."""
    model = copy.deepcopy(model)
    quantize(model, [x[:CALIBRATION]], images=CALIBRATION)
    return model


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def interleaved_ms(runs: dict[str, Run], x: np.ndarray, repeats: int) -> dict[str, list[float]]:
    """ms a run, `repeats` samples of each. As many untimed runs before bring weights into the caches and clocks up, for
    every runtime as long."""
    counts = {}
    for name, run in runs.items():
        wait_for_idle_threads()
        run(x)
        start = time.perf_counter()
        run(x)
        counts[name] = max(1, round(SAMPLE / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wait_for_idle_threads()
            for _ in range(counts[name]):
                run(x)
            start = time.perf_counter()
            for _ in range(counts[name]):
                run(x)
            samples[name].append(1e3 * (time.perf_counter() - start) / counts[name])
    return samples


def wait_for_idle_threads() -> None:
    """Until the threads of the runtime before have fallen asleep; some spin for long, and would share our cores."""
    for _ in range(500):
        used = time.process_time()
        time.sleep(PAUSE)
        if time.process_time() - used < PAUSE / 10:
            return


def peaks(engine: Engine, dense: torch.nn.Module, x: torch.Tensor, threads: int, peers: list[str]) -> dict[str, float]:
    """Peak memory in MiB of a process of its own for each runtime that can do without torch."""
    with tempfile.TemporaryDirectory() as directory:
        program, onnx = Path(directory) / "net.splore", Path(directory) / "net.onnx"
        try:
            engine.save(program)
        except ValueError:
            return {}
        files = {"engine": program}
        others = [peer for peer in peers if peer in BY_FILE]
        if others:
            export(dense, x, onnx)
        for peer in others:
            small = BY_FILE[peer]
            files[peer] = small(onnx, x.numpy()[:CALIBRATION], Path(directory)) if small else onnx
        runtimes = {peer: peer.removesuffix(" int8") for peer in files}
        return {peer: peak_mib(runtimes[peer], file, tuple(x.shape), threads) for peer, file in files.items()}


def report(row: dict, engine: Engine, options: argparse.Namespace) -> None:
    print(f"\nbatch {row['batch']}, {row['n']} repeats, {provenance()['hardware']['cpu']}")
    for name, ms in sorted({"engine": row["engine_ms"], **row["peers"]}.items(), key=lambda item: item[1]):
        low, high = row["spread"][name]
        memory = f"  {row['peak_mib'][name]:8.1f} MiB" if name in row.get("peak_mib", {}) else ""
        off = f"  off by {row['errors'][name]:.1e}"
        print(f"  {name:17} {ms:9.3f} ms  ({low:.3f} to {high:.3f}){off}{memory}")
    if row["speedup"]:
        print(f"  {row['speedup']:.2f}x the fastest peer; largest error {row['max_error']:.1e}; {row['verdict']}")
    if options.layers:
        print(f"\n{engine.summary()}")


if __name__ == "__main__":
    sys.exit(main())
