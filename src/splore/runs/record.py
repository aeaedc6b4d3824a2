"""What a run has done so far: its table of stages, its journal and its checkpoints, in the run's folder."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from splore.measure.accuracy import Score
from splore.measure.cost import Cost
from splore.measure.provenance import provenance
from splore.measure.tables import StageRow
from splore.runs.folder import write_summary
from splore.runs.journal import JOURNAL, Journal
from splore.runs.recipe import Recipe
from splore.train.checkpoint import Checkpoints, random_state
from splore.train.loop import Position, check_not_diverged
from splore.train.shards import optimizer_state

STAGES = ("dense", "train", "finetune", "done")
"""Where a run can be, in order."""

FILES = {
    "as given": "given.safetensors",
    "as decomposed": "decomposed.safetensors",
    "dense": "dense.safetensors",
    "after training": "trained.safetensors",
    "after the cut": "cut.safetensors",
    "after fine-tuning": "model.safetensors",
    "in eight bits": "quantized.safetensors",
}
"""The rows of the table of stages, and the model file of each."""


class Record:
    """The memory of a run. With `resume`, it begins where the newest whole checkpoint was written.

    Attributes:
        rows: the table of stages so far, as JSON-able dicts.
        state: the checkpoint that the run goes on from; None once its stage is over.
    """

    def __init__(self, out: Path, resume: bool, main: bool) -> None:
        self.out, self.main = out, main
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.state = self.checkpoints.load() if resume else None
        before = self.state or {"journal": 0, "rows": [], "seconds": 0.0}
        self.journal = Journal(out / JOURNAL, before["journal"], write=main)
        self.rows: list[dict] = before["rows"]
        self._seconds: float = before["seconds"]
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the run has computed, over all its resumptions."""
        return self._seconds + time.monotonic() - self._started

    def is_over(self, stage: str) -> bool:
        """Whether the run that is resumed had finished this stage."""
        return self.state is not None and STAGES.index(self.state["stage"]) > STAGES.index(stage)

    def within(self, stage: str) -> dict | None:
        """The checkpoint, when it lies in this stage."""
        return self.state if self.state is not None and self.state["stage"] == stage else None

    def origin(self) -> str:
        """Where a resumed run goes on, for people."""
        if self.state is None:
            return "there is no whole checkpoint: the run starts again"
        at = self.state
        where = "" if at["optimizer"] is None else f", epoch {at['epoch'] + 1}, after {at['step']} of its steps"
        return f"going on in stage {at['stage']}{where}"

    def add_row(self, name: str, score: Score, cost: Cost, paid: dict) -> None:
        """Adds the network as it stands, already saved in its file, to the table of stages.

        `paid` has the currency of the budget and what the network costs in it, where there is one.
        """
        row = {
            "stage": name,
            "accuracy": score.accuracy,
            "top5": score.top5,
            "loss": score.loss,
            "params": cost.params,
            "macs": cost.macs,
            "bytes": (self.out / FILES[name]).stat().st_size if self.main else 0,
            "params_kept": cost.params_kept,
            "macs_kept": cost.macs_kept,
        } | paid
        self.rows = [old for old in self.rows if old["stage"] != name] + [row]
        self.journal.add(row=row)

    def row(self, name: str) -> dict | None:
        """A row of the table of stages."""
        return next((row for row in self.rows if row["stage"] == name), None)

    def table(self) -> list[StageRow]:
        """The table of stages."""
        names = ("accuracy", "params", "params_kept", "macs_kept", "bytes")
        return [StageRow(row["stage"], **{name: row[name] for name in names}) for row in self.rows]

    def checkpoint(
        self, stage: str, model: nn.Module | None, optimizer: torch.optim.Optimizer | None, at: Position
    ) -> None:
        """Writes where the run is, to go on from there after any death; never a state that is not finite.

        Without an optimiser it marks the start of `stage`; without a model, that of a fresh one. All processes call it,
        for shards are gathered.
        """
        if model is not None:
            check_not_diverged(model, at.sums)
        steps = optimizer_state(optimizer) if optimizer is not None else None
        if self.main:
            self.checkpoints.save(
                {
                    "stage": stage,
                    "epoch": at.epoch,
                    "step": at.step,
                    "sums": at.sums,
                    "model": model.state_dict() if model is not None else None,
                    "optimizer": steps,
                    "random": random_state(),
                    "journal": self.journal.size,
                    "rows": self.rows,
                    "seconds": self.seconds,
                }
            )
        if optimizer is None:
            self.state = None

    def summarise(self, recipe: Recipe, cost: Cost, dense_bytes: int) -> dict:
        """Writes summary.json and returns what it holds; `cost` and `dense_bytes` serve where no dense net was run."""
        keys = ("accuracy", "top5", "params", "macs", "bytes")
        dense = self.row("dense") or {"params": cost.dense_params, "macs": cost.dense_macs, "bytes": dense_bytes}
        summary: dict = {"dense": {key: dense.get(key) for key in keys}}
        compressed = self.row("after fine-tuning")
        if compressed:
            summary["compressed"] = {key: compressed[key] for key in (*keys, "params_kept", "macs_kept")}
        summary |= {
            "stages": self.rows,
            "seed": recipe.seed,
            "seconds": round(self.seconds, 1),
            "recipe": asdict(recipe),
            **provenance(),
        }
        if self.main:
            write_summary(self.out, summary)
        return summary
