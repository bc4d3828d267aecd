"""The memory as a layer of sequence models."""

from mnm_jax.layers.block import BlockCarry, NeuralMemoryBlock

__all__ = ["BlockCarry", "NeuralMemoryBlock"]
