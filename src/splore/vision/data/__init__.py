"""Data sets as a training loop reads them; a run that starts again in the middle of an epoch sees the same batches."""

from splore.vision.data.batches import Batches, Data
from splore.vision.data.memory import Augment
from splore.vision.data.open import open_data

__all__ = ["Augment", "Batches", "Data", "open_data"]
