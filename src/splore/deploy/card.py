"""The model card of a compressed network, made from its file and the figures of its run."""

from pathlib import Path

import splore
from splore.measure.tables import count, percent, size
from splore.modelfile.file import dense_bytes, load, read_structure
from splore.modelfile.structure import Structure
from splore.runs.folder import RECIPE
from splore.task import Task


def card(file: Path, name: str, summary: dict | None) -> str:
    """The model card of a repository, in Markdown with its YAML header."""
    from huggingface_hub import ModelCardData

    structure = read_structure(file)
    source = str((structure.origin or {}).get("source", "a net of its author's own"))
    data = ModelCardData(
        library_name="splore",
        pipeline_tag="image-classification",
        tags=["splore", "low-rank", "sparse", "compression"],
        datasets=None if summary is None else [summary["recipe"]["data"]["name"]],
        model_name=name.rpartition("/")[2],
        eval_results=None if summary is None else _results(summary, source),
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"{source} with every weight learned as a low-rank plus a sparse matrix, W = A·B + S, by splore "
        f"{splore.__version__}.",
        _figures(summary) if summary else _size(file),
        _use(name, structure),
        _task(structure.task),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(summary: dict, source: str) -> list:
    from huggingface_hub import EvalResult

    name = summary["recipe"]["data"]["name"]
    final = summary.get("compressed") or summary["dense"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=name,
            dataset_name=name,
            metric_type="accuracy",
            metric_value=round(final["accuracy"], 2),
        )
    ]


def _figures(summary: dict) -> str:
    """The dense net and the compressed one, side by side."""
    dense, ours = summary["dense"], summary.get("compressed")
    rows = [("dense", dense, None, None)]
    if ours:
        rows.append(("A·B + S", ours, ours["params_kept"], ours["macs_kept"]))
    lines = ["| | accuracy | parameters | kept | multiply-adds kept | file |", "|---|---|---|---|---|---|"]
    for label, row, kept, macs in rows:
        accuracy = "" if row.get("accuracy") is None else percent(row["accuracy"] / 100)
        values = (label, accuracy, count(row["params"]), percent(kept), percent(macs), size(row["bytes"]))
        lines.append(f"| {' | '.join(values)} |")
    data, hardware = summary["recipe"]["data"]["name"], summary.get("hardware", {})
    lines += [
        "",
        f"On the test images of {data}, one run with seed {summary['seed']}; {RECIPE} has all of its settings.",
    ]
    if hardware.get("cpu"):
        lines[-1] += f" Trained on {hardware.get('gpu') or hardware['cpu']}."
    return "\n".join(lines)


def _size(file: Path) -> str:
    """What can be said of a file without a run."""
    try:
        net = load(file)
    except ValueError:  # a net of the author's own
        return f"The file takes {size(file.stat().st_size)}."
    return f"The file takes {size(file.stat().st_size)}, that of the dense net {size(dense_bytes(net))}."


def _use(name: str, structure: Structure) -> str:
    source = str((structure.origin or {}).get("source", ":"))
    own = ":" in source and not source.startswith(("torchvision:", "timm:"))
    steps = None if structure.task is None else structure.task.preprocessing
    example = "example_images" if steps is None else f"torch.zeros(1, {', '.join(map(str, steps.shape))})"
    return (
        "## Use\n\n```python\nimport torch\n\nimport splore\n\n"
        f'model = splore.load("{name}"{", your_dense_net" if own else ""}).eval()\n'
        f"engine = splore.compile(model, {example})  # the zeros turned into speed, on a CPU\n"
        "```\n\nThe file is safetensors and holds no code."
    )


def _task(task: Task | None) -> str:
    if task is None or task.preprocessing is None:
        return ""
    steps = task.preprocessing
    shorter = f"the shorter side resized to {steps.shorter_side}, the central " if steps.shorter_side else ""
    classes = f" {len(task.classes)} classes: {', '.join(task.classes[:20])}{', ...' if task.classes[20:] else ''}."
    numbers = (", ".join(f"{value:.4g}" for value in each) for each in (steps.mean, steps.deviation))
    mean, deviation = numbers
    return (
        f"## Images\n\n{shorter}{steps.size[0]} x {steps.size[1]} pixels, scaled to 0 ... 1, mean {mean}, deviation "
        f"{deviation}: `model.task.preprocessing(image)`.{classes if task.classes else ''}"
    )
