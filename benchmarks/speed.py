"""The tables of speed in docs/results.md, from engine.json and training.json in benchmarks/results.

python benchmarks/speed.py >> docs/results.md
"""

import json
from pathlib import Path

from rows import DEFAULTS

RESULTS = Path(__file__).parent / "results"
SPEED = """
## Speed on a CPU

The whole net on 2 threads, random weights of the given structure (L: its share of each layer, or its rank), outputs
checked first, beside the *fastest* of PyTorch eager, torch.compile, ONNX Runtime and OpenVINO, and of ONNX Runtime in
int8 and OpenVINO in int8 and bf16, as far as they ran beside it; medians of 20 (`make bench`,
`benchmarks/results/engine.json`). Runs differ by some 5 %. The commit tells how old an engine is; the EPYC without a
family is the one of family 26, earlier. That one is a virtual machine, which is moved between cores that share a
third-level cache and cores that don't: what this does to one image is in the [log](log_engine.md)."""
TRAINING = """
## A training step

Ours, masks and proximal step included, over the dense one: 2 threads, medians of n (`benchmarks/training.py`,
`benchmarks/results/training.json`). On a GPU: the [log](log.md#what-a-training-step-costs)."""


def by_machine(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each processor, the newest measurement last."""
    machines: dict[str, list[dict]] = {}
    for row in rows:
        machines.setdefault(row["hardware"]["cpu"], []).append(row)
    return machines


def engine_table(rows: list[dict]) -> str:
    """Whole nets: the engine, the fastest dense runtime, and the peak memory of the engine and of the least peer."""
    lines = [
        "| net | kept | L | bits | batch | engine | fastest dense | speed-up | peak memory, engine / peer | commit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [DEFAULTS | row for row in rows]
    for row in sorted(rows, key=lambda row: (row["net"], row["kept"], row["rank"], -row["bits"], row["batch"])):
        rank = row["rank"]
        low_rank = "none" if not rank else f"{100 * rank:g} %" if rank < 1 else f"rank {rank:g}"
        peer, ms = min(row["peers"].items(), key=lambda item: item[1])
        memory = dict(row.get("peak_mib", {}))
        ours = memory.pop("engine", 0)
        peaks = f"{ours:.0f} / {min(memory.values()):.0f} MiB" if memory else ""
        lines.append(
            f"| {row['net']} | {100 * row['kept']:g} % | {low_rank} | {row['bits']} | {row['batch']} "
            f"| {row['engine_ms']:.3g} ms | {ms:.3g} ms, {peer} | {row['speedup']:.2f}x | {peaks} "
            f"| {row['commit'][:7]} |"
        )
    return "\n".join(lines)


def training_table(rows: list[dict]) -> str:
    """A step of ours, masks and proximal step included, and of A·B and S as two branches, over the dense one."""
    lines = [
        "| net | images a step | type | mode | dense | step, ours | step, two branches | memory, ours | n |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        memory = f"{row['memory_ratio']:.3f}x" if "memory_ratio" in row else ""
        lines.append(
            f"| {row['net']} | {row['batch']} | {row['dtype']} | {row['mode']} | {row['dense_ips']:.3g} images/s "
            f"| {row['step_ratio']:.3f}x | {row['naive_ratio']:.3f}x | {memory} | {row['repeats']} |"
        )
    return "\n".join(lines)


def main() -> None:
    engine, training = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("engine", "training"))
    print(SPEED)
    for machine, rows in by_machine(engine).items():
        print(f"\n### {machine}\n\n{engine_table(rows)}")
    print(TRAINING)
    for machine, rows in by_machine(training).items():
        print(f"\n### {machine}, training\n\n{training_table(rows)}")


if __name__ == "__main__":
    main()
