"""Recurrent cells, one per file. Each is an `nnx.RNNCellBase`: `(carry, inputs [B, D]) -> (carry, outputs)`."""

from mnm_jax.cells._chain import ChainCarry, ChainCell
from mnm_jax.cells._common import CellOutput, MemoryTrace, output_features, split_output
from mnm_jax.cells._dnc import DNCCarry, DNCCell
from mnm_jax.cells._lstm import LSTMCell
from mnm_jax.cells._mnm import MNMCarry, MNMCell
from mnm_jax.cells._ntm import NTMCarry, NTMCell
from mnm_jax.cells._plastic import PlasticCarry, PlasticCell
from mnm_jax.cells._rnn import RNNCell
from mnm_jax.cells._salu import SALUCarry, SALUCell

__all__ = [
    "CellOutput",
    "ChainCarry",
    "ChainCell",
    "DNCCarry",
    "DNCCell",
    "LSTMCell",
    "MNMCarry",
    "MNMCell",
    "MemoryTrace",
    "NTMCarry",
    "NTMCell",
    "PlasticCarry",
    "PlasticCell",
    "RNNCell",
    "SALUCarry",
    "SALUCell",
    "output_features",
    "split_output",
]
