"""Analysis of trained runs: memory maps and learning curves, as plain functions of NumPy arrays."""

from mnm_jax.analysis._curves import LearningCurve, has_metric, learning_curve, steps_to_reach
from mnm_jax.analysis._similarity import MemoryMaps, memory_maps

__all__ = ["LearningCurve", "MemoryMaps", "has_metric", "learning_curve", "memory_maps", "steps_to_reach"]
