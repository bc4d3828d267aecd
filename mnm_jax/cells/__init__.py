"""Recurrent cells, one a file: each an `nnx.RNNCellBase`, `(carry, inputs [B, D]) -> (carry, outputs)`."""

from mnm_jax.cells.chain import ChainCarry, ChainCell
from mnm_jax.cells.common import CellOutput, MemoryTrace, output_features, split_output
from mnm_jax.cells.dnc import DNCCarry, DNCCell
from mnm_jax.cells.lstm import LSTMCell
from mnm_jax.cells.mnm import MNMCarry, MNMCell
from mnm_jax.cells.ntm import NTMCarry, NTMCell
from mnm_jax.cells.plastic import PlasticCarry, PlasticCell
from mnm_jax.cells.rnn import RNNCell
from mnm_jax.cells.salu import SALUCarry, SALUCell

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
