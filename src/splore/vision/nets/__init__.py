"""Example nets, and any other net by its name."""

from splore.vision.nets.build import NETS, Origin, build, rebuild

__all__ = ["NETS", "Origin", "build", "rebuild"]
