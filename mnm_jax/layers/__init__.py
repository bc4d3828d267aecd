"""The memory as a layer of sequence models."""

from mnm_jax.layers._carry import LayerCarry, LayerOutput
from mnm_jax.layers._layer import NeuralMemoryLayer

__all__ = ["LayerCarry", "LayerOutput", "NeuralMemoryLayer"]
