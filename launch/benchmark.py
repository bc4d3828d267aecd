"""Measures time and memory, one suite per call, and draws a figure.

    python -m launch.benchmark --suite=NAME --out=FILE.json

training_step  the forms of `mnm_jax.recurrence` against plain autodiff, over rules, heads and lengths
scaling        the form "auto" against the number of steps, the width and the number of heads
limit          rates of the forms and of a large matrix product
peers          the memory against titans-pytorch, if that is installed
seeds          the dictionary recipe's update, its seeds mapped by `vmap` and by `lax.map`
maze           steps of the maze per second: mazes and agent in one program, and the whole update
layer          the memory as a layer: a sequence in chunks, and token by token

The candidates of a group of rows are timed in turns, and FILE.json is written after each group; FILE.png is the figure.
The same command resumes an interrupted measurement. On a CPU every core is a device, and the devices share the batch.
"""

import jax
from absl import flags

from launch.bench.header import count_cores
from launch.bench.run import run
from launch.bench.suites import SUITES
from launch.command import run_command


def main() -> None:
    jax.config.update("jax_num_cpu_devices", count_cores())
    run(_SUITE.value, _OUT.value)


if __name__ == "__main__":
    _SUITE = flags.DEFINE_string("suite", None, f"One of {', '.join(SUITES)}.", required=True)
    _OUT = flags.DEFINE_string("out", None, "The JSON file; the figure is written beside it, as .png.", required=True)
    run_command(main, "give --suite=NAME and --out=FILE.json.")
