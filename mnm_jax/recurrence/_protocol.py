"""The interface of a cell that the fast execution forms use."""

from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx

from mnm_jax._params import ParamTree
from mnm_jax.memory import Memory


@runtime_checkable
class MemoryCell(Protocol):
    """A recurrent cell with a neural memory that `unroll` can run in every execution form.

    A cell without all of these members runs only in the form "plain". Besides the members, the fast forms rely on
    these properties of the cell:

    * One node of its carry is the memory's state, a `MemoryState`; all other leaves are arrays `[B, ...]` that are
      small compared with the fast weights. They may be integers, such as a counter, which have no derivative.
    * Other nodes of the carry that describe the memory, such as recent writes, may have a property `of_memory` that is
      True: `reset_controller` and `fork_memory` then treat them as they treat the memory.
    * It uses the memory's state only through `memory.read`, `memory.write` and `memory.write_read`, outside of
      transformations such as `jax.checkpoint` or `jax.lax.cond`. It may drop the state after a write, and read an older
      one again. The state that a step returns contains at least one write of this step. For a step that does otherwise
      "auto" runs "plain", and the fast forms raise a ValueError.
    * It does not test the type of the memory's state, which is another `Storage` in the fast forms.
    * A step changes only the carry, which holds all state: dropout, whose random state changes, is refused.
    * A step uses no traced floating-point numbers except the cell's parameters, its carry and its inputs. With others,
      such as one that a write rule or an activation closes over, "auto" runs "plain", and the fast forms raise a
      ValueError.
    * It calls every map of `linear_maps()` outside any derivative that it takes within a step.
    * `initialize_carry` needs no random key and is the same for every example.

    Attributes:
      memory: the memory, from `gradient_memory`, `local_memory` or another factory.
      memory_params: the memory's slow parameters, `ParamTree(memory.init(key))`. The fast forms call
        `memory_params.get_value()`, which returns the `MemoryParams`, and `memory_params.set_value(params)`.
      heads: `H`, the number of keys and values that the cell writes per step.

    Examples:
      >>> from mnm_jax import LSTMCell, MNMCell, local_memory
      >>> isinstance(MNMCell(3, 4, local_memory(2, 2, hidden_sizes=()), rngs=nnx.Rngs(0)), MemoryCell)
      True
      >>> isinstance(LSTMCell(3, 4, rngs=nnx.Rngs(0)), MemoryCell)
      False
    """

    memory: Memory
    memory_params: ParamTree
    heads: int

    def linear_maps(self) -> list[nnx.Linear]:
        """Returns the slow linear maps that the cell applies in every step.

        Their gradients are computed once per sequence, as one large product over all steps, instead of once per step.
        The list may be incomplete: any other map is differentiated step by step.
        """
        ...

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs | None = None) -> Any:
        """Returns the carry at the start of sequences whose inputs have the shape `input_shape = (B, D)`."""
        ...

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, Any]:
        """Returns the carry and the outputs after one step with inputs `[B, D]`."""
        ...
