"""Uses the memory as pure functions, as in a model of your own: stores three pairs and reads them back.

Run it with `python -m examples.memory_alone`.
"""

import jax
import jax.numpy as jnp

from mnm_jax import gradient_memory, local_memory


def recall_errors() -> dict[str, float]:
    """Returns the largest error of three values read back after three one-shot writes, by rule."""
    keys = jnp.eye(3, 8)[:, None, None]  # three writes of one example with one head: [3, B, H, K]
    values = jax.random.uniform(jax.random.key(1), (3, 1, 1, 4), minval=-1, maxval=1)
    errors = {}
    for name, make in [("MNM-g", gradient_memory), ("MNM-p", local_memory)]:
        memory = make(8, 4, hidden_sizes=())  # () is a linear memory, (16, 16) one of three layers
        params = memory.init(jax.random.key(0))

        def write(state, pair, memory=memory, params=params):
            state, info = memory.write(params, state, *pair, rate=jnp.ones(1))
            return state, info.loss_before

        state, surprise = jax.lax.scan(write, memory.start(params, 1), (keys, values))
        answers = jnp.stack([memory.read(params, state, key) for key in keys])
        errors[name] = float(jnp.max(jnp.abs(answers - values)))
        print(f"{name}: mean square error before each write {surprise[:, 0].round(2)}, after all {errors[name]:.1e}")
    return errors


if __name__ == "__main__":
    errors = recall_errors()
