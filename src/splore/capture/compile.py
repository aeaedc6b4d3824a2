"""From a PyTorch model to an engine: captured, lowered, fused, and timed against the model itself."""

from torch import Tensor, nn

from splore.capture.export import capture
from splore.engine.engine import Engine


def compile(model: nn.Module, example_input: Tensor, threads: int | None = None) -> Engine:
    """Compiles a model in eval mode for inputs like the example (N, C, H, W) or (N, C), of any batch size.

    The model may hold decomposed layers, dense ones, or both; what the engine does not know runs in torch. Every choice
    is timed on this machine, with `threads` threads (default: every core that this process may use) and with the batch
    size of the example. Where the dense network is faster in torch, it runs there, and the summary says so.

    Raises ValueError where the model is not in eval mode, not on the CPU, not in float32, or can't be exported.
    """
    captured = capture(model, example_input)
    engine = Engine(captured.segments, captured.input, captured.output, threads, flow=captured.flow)
    engine.prefer_faster(captured.dense, example_input)
    return engine
