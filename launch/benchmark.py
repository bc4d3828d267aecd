"""Measures time and memory, one suite per call, and draws a figure.

    python -m launch.benchmark --suite=NAME --out=FILE.json

training_step  the forms of `mnm_jax.recurrence` against plain autodiff, over rules, heads and lengths
many_heads     the same with 8 and 16 heads, "auto" against plain autodiff only
own_program    a user's own jitted program, with and without micro-batches, against the training program
scaling        the form "auto" against the number of steps, the width and the number of heads
limit          rates of the forms and of a large matrix product
peers          the memory against titans-pytorch, if that is installed
lstm           an LSTM in `unroll` against `torch.nn.LSTM`, if PyTorch is installed
seeds          the dictionary recipe's update, its seeds mapped by `vmap` and by `lax.map`
maze           steps of the maze per second: mazes and agent in one program, and the whole update
layer          the memory as a layer: a sequence in chunks, and token by token; beside attention and an LSTM
accelerator    cells and layers on one GPU or TPU, against PyTorch and softmax attention, within --budget seconds

The candidates of a group of rows are timed in turns, and FILE.json is written after each group; FILE.png is the figure,
drawn if matplotlib is installed. With a folder as --out, the files are named after the suite. The same command resumes
an interrupted measurement. On a CPU every core is a device, and the devices share the batch.

The suite "accelerator" needs only jax, flax, optax, absl and numpy. It writes its file after each row; a row that fails
has the error as its note, and rows that are not started within the budget say so. It compiles into JAX's persistent
cache, in the folder "cache" beside the file unless JAX_COMPILATION_CACHE_DIR is set.
"""

import os

import jax
from absl import flags

from launch.bench.header import count_cores
from launch.bench.run import BUDGET, run
from launch.bench.suites import SUITES
from launch.command import run_command


def main() -> None:
    jax.config.update("jax_num_cpu_devices", count_cores())
    if _SUITE.value == "accelerator":
        # JAX would take three quarters of the device's memory, and PyTorch needs some on the same device.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    run(_SUITE.value, _OUT.value, budget=_BUDGET.value)


if __name__ == "__main__":
    _SUITE = flags.DEFINE_string("suite", None, f"One of {', '.join(SUITES)}.", required=True)
    _OUT = flags.DEFINE_string("out", None, "JSON file, or folder; the figure is written beside it.", required=True)
    _BUDGET = flags.DEFINE_float("budget", BUDGET, "Seconds after which the suite accelerator starts no other rows.")
    run_command(main, "give --suite=NAME and --out=FILE.json.", cache=False)
