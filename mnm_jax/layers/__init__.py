"""The memory as a layer of sequence models."""

from mnm_jax.layers._layer import LayerCarry, NeuralMemoryLayer

__all__ = ["LayerCarry", "NeuralMemoryLayer"]
