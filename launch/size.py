"""Prints what a recipe costs on this machine: the size of its model, and time and memory of an update in each form.

    python -m launch.size --config=launch/configs/dictionary.py [--config.KEY=VALUE ...] [--forms=auto,plain]

The first line is that of `launch.train`: parameters, carry per example, operations. Then each execution form of
`mnm_jax.unroll` ("plain" only, for a model without a neural memory) has a line: seconds to compile the update of all
seeds, temporary memory, time per update and per step of its sequences, and the time of the recipe's updates without
evaluations. A task that reads files is measured with a batch of the mean size of a run's first 20; where later batches
are longer (bAbI with `first_tasks` begins with short stories), so is the training. Training uses the form "auto". Other
sizes are settings: `--config.training.batch_size=8`, `--config.task.support=16`, `--config.model.heads=4`. Nothing is
written.
"""

import jax
from absl import flags

from launch.bench.update import describe_cost, update_costs
from launch.command import run_command
from launch.runs.build import build_parts
from launch.runs.config_flag import define_config
from launch.runs.size import describe, measure
from mnm_jax.recurrence import FORMS


def main() -> None:
    parts = build_parts(_CONFIG.value.to_dict())
    print(describe(measure(parts.make_model, parts.task, parts.training), parts.training), flush=True)
    for row in update_costs(parts, jax.devices(), _FORMS.value):
        print(describe_cost(row, parts.training.steps), flush=True)


if __name__ == "__main__":
    _CONFIG = define_config()
    _FORMS = flags.DEFINE_list("forms", list(FORMS), "Execution forms to measure.")
    run_command(main, "settings are given as --config.KEY=VALUE.", cache=False)
