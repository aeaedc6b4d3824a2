"""Milliseconds of a run's nets in the engine, on this machine."""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import torch

from splore.report.run_folder import LeftOut, RunFolder


@dataclass(frozen=True)
class Times:
    """One image through the compressed net and through the dense one, both compiled by `splore.compile`.

    Attributes:
        ms, dense_ms: the fastest of a few runs that take turns; `dense_ms` is None where there is no dense net.
        layers, dense_layers: ms of each native step, by the layer's name; empty where a net runs in torch.
        threads: that both use.
    """

    ms: float
    dense_ms: float | None
    layers: dict[str, float]
    dense_layers: dict[str, float]
    threads: int


def time_run(run: RunFolder) -> Times:
    """Measures a run's nets. Raises LeftOut where one can't be had or compiled."""
    from splore.capture.compile import compile
    from splore.engine.program_segment import median_ms

    x = torch.zeros(1, *run.image_shape)
    stages = [stage for stage in ("after fine-tuning", "dense") if run.has(stage)]
    try:
        engines = [compile(run.net(stage), x) for stage in stages]
    except ValueError as error:
        raise LeftOut(f"The net can't be compiled: {error}.") from error
    ms = median_ms(*(partial(engine, x) for engine in engines))
    layers = []
    for engine in engines:
        by_name: dict[str, float] = defaultdict(float)
        for step in engine.steps():
            by_name[step["name"]] += step["ms"]
        layers.append(dict(by_name))
    return Times(ms[0], ms[1] if len(ms) > 1 else None, layers[0], layers[-1], engines[0].threads)
