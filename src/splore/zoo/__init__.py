"""Example nets, and any other net by its name."""

from splore.zoo.build import NETS, Origin, build, rebuild

__all__ = ["NETS", "Origin", "build", "rebuild"]
