"""Noisy in-context recall."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mnm_jax._checks import check_fraction, check_sizes
from tasks.league.tokens import LengthTask, TokenSequence

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyRecall(LengthTask):
    """Shows pairs of a key and its value, repeatedly and mixed with noise; the answer to a key is its value.

    Sequence: a new map from keys to values, uniform with replacement, and `length / 2` places of two steps. A place
    shows a uniform key and its value or, with probability `noise`, two tokens of noise, which has a vocabulary of its
    own. The answer of a step that shows a key is its value, the next token; only keys that were shown before count.
    T = length.

    Meta-training, metrics and chance level: see `TokenTask`. Test sets "length=N" have N steps. A curriculum has no
    effect. Oracle: a hash table.

    Args:
      vocabulary: number of keys, of values and of tokens of noise, each.
      length: T, an even number.
      noise: fraction of the places with noise, below 1.
      lengths: lengths evaluated at the end (split "test"), besides the one trained on. Other arguments: see
        `TokenTask`.

    Raises:
      TypeError, ValueError: see `TokenTask`; or an odd length, or noise outside [0, 1).

    Examples:
      >>> task = NoisyRecall(vocabulary=3, length=14, lengths=())
      >>> print(task.render(task.sample(jax.random.key(0), 2), 0))
      input   k2 v1 k0 v0 #0 #2 k0 v0 k1 v2 k0 v0 k2 v1
      answer                    v0          v0    v1

    References:
      Poli et al., MAD, ICML 2024. There noise is inserted token by token, and the numbers of keys and values differ.
    """

    vocabulary: int = 16
    length: int = 128
    noise: float = 0.2
    lengths: tuple[int, ...] = (256, 512)
    name: ClassVar[str] = "noisy_recall"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(vocabulary=self.vocabulary)
        check_fraction(noise=self.noise)
        if self.noise == 1:
            raise ValueError("noise must be < 1, got 1: no pair would be left.")
        for name, lengths in (("length", (self.length,)), ("lengths", self.lengths)):
            for length in lengths:
                if length % 2:
                    raise ValueError(f"{name} must be even, since a key and its value take two steps, got {length}.")

    @property
    def tokens_known(self) -> int:
        return 3 * self.vocabulary

    @property
    def output_features(self) -> int:
        return self.vocabulary

    def draw(self, key: Array, growth: Array) -> TokenSequence:
        del growth
        map_key, key_key, noise_key, token_key = jax.random.split(key, 4)
        values = jax.random.randint(map_key, (self.vocabulary,), 0, self.vocabulary)
        keys = jax.random.randint(key_key, (self.length // 2,), 0, self.vocabulary)
        noisy = jax.random.bernoulli(noise_key, float(self.noise), keys.shape)
        noise = 2 * self.vocabulary + jax.random.randint(token_key, (self.length // 2, 2), 0, self.vocabulary)
        shown = jnp.stack([keys, self.vocabulary + values[keys]], axis=1)
        place = jnp.arange(self.length // 2)
        earlier = (keys[None] == keys[:, None]) & ~noisy[None] & (place[None] < place[:, None])
        counts = jnp.stack([jnp.any(earlier, axis=1) & ~noisy, jnp.zeros_like(noisy)], axis=1)
        return TokenSequence(
            tokens=jnp.where(noisy[:, None], noise, shown).reshape(self.length),
            targets=jnp.repeat(values[keys], 2),
            loss_mask=counts.reshape(self.length),
            mask=jnp.ones(self.length, bool),
        )

    def token(self, shown: int) -> str:
        kind, number = divmod(shown, self.vocabulary)
        return "kv#"[kind] + str(number)

    def answer(self, target: int) -> str:
        return f"v{target}"
