"""What all tests share: one thread each, so that they can run side by side, and the same draws every time."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("splore", deadline=None, derandomize=True, database=None)
settings.load_profile("splore")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes seconds where others take milliseconds; leave out by -m 'not slow'")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def fast_plans(monkeypatch):
    monkeypatch.setenv("SPLORE_PLAN", "fast")


@pytest.fixture
def untimed(fast_plans, monkeypatch):
    """Nothing is timed, and an engine is taken for faster than the network in torch."""
    monkeypatch.setattr("splore.engine.engine.median_ms", lambda *_: (1.0, 2.0))
