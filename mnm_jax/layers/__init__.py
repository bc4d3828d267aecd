"""The memory as a layer of sequence models."""

from mnm_jax.layers._layer import BlockCarry, NeuralMemoryBlock

__all__ = ["BlockCarry", "NeuralMemoryBlock"]
