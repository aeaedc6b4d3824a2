"""From a PyTorch model to an engine: captured, lowered, fused, and timed against the model itself."""

from collections.abc import Iterable

from torch import Tensor, nn

from splore.capture.export import capture
from splore.design.wrappers import network_within
from splore.engine.engine import Engine
from splore.engine.program import Program
from splore.engine.program_segment import median_ms
from splore.engine.quantise import quantise
from splore.task import task_of


def compile(
    model: nn.Module,
    example_input: Tensor,
    threads: int | None = None,
    batches: Iterable[int] = (),
    deterministic: bool = False,
) -> Engine:
    """Compiles a model in eval mode for inputs like the example (N, C, H, W) or (N, C), of any batch size.

    Of one within `torch.compile`, DataParallel, DDP, `AveragedModel` or timm's averages, the network within is taken.
    The model may hold decomposed layers, dense ones, or both; what the engine does not know runs in torch. Every choice
    is timed on this machine, with `threads` threads (default: every core that this process may use) and with the batch
    size of the example, and those of `batches`: other sizes run by the plans of these. Where the dense network is
    faster in torch, it runs there, and the summary says so. `deterministic` gives an image the same result to the bit,
    whatever the batch and the engine, and never runs in torch. The engine is a snapshot: it stays what it is
    when the model is trained further. A model with `activation_ranges` (see `splore.quantize`) runs in eight bits, or
    in float32 where that is faster.

    Raises ValueError where the model is not in eval mode, not on the CPU, not in float32, or can't be exported, and
    where a part of it needs torch but the result shall be deterministic.
    """
    model = network_within(model)
    captured = capture(model, example_input)
    sizes = [batch for batch in (len(example_input), *batches) if batch]

    def planned(segments: tuple) -> Engine:
        engine = Engine(
            segments, captured.input, captured.output, threads, captured.flow, deterministic, task_of(model)
        )
        for batch in sizes:
            engine.plan(batch)
        return engine

    ranges = getattr(model, "activation_ranges", None)
    engine = planned(tuple(quantise(s, ranges) if ranges and isinstance(s, Program) else s for s in captured.segments))
    if deterministic:
        return engine
    if ranges and len(example_input):
        x, floats = example_input.detach(), planned(captured.segments)
        ours, theirs = median_ms(lambda: engine(x), lambda: floats(x))
        engine = engine if ours <= theirs else floats
    engine.prefer_faster(captured.dense, example_input)
    return engine
