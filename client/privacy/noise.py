"""Noise for the privacy of records: one keyed stream of bits, and exact samplers that read it.

Sources: C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy" (NeurIPS 2020),
algorithms 1 to 3, here run on whole arrays at once but still in integers and rationals only; N. Holohan, S.
Braghin, "Secure random sampling in differential privacy" (ESORICS 2021), for continuous draws; D. J.
Bernstein, "Fast-key-erasure random-number generators" (2017) and RFC 8439 (ChaCha20), for the stream.

Vectorising stays exact because every candidate of a batch is drawn and judged by its own bits: the first k
accepted ones of an independent sequence are k independent draws of the accepted law, however many are tried
at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from causaldao.errors import MisuseError

Kind: TypeAlias = Literal["os", "simulated"]
Integers: TypeAlias = NDArray[Any]  # int64, or object holding Python's integers where 62 bits do not suffice

_KEY = 32
_BLOCK = 1 << 16
_WORD = 62  # bits of a draw that stays within int64 after any comparison
_LARGEST_SCALE = 1 << 48  # |draw| would need 2^14 consecutive successes of exp(-1) to leave int64


class NoiseSource:
    """A ChaCha20 stream and the samplers over it.

    `kind` is "os" (keyed by the operating system's entropy, the only kind that protects anybody) or
    "simulated" (keyed by a seed: whoever knows the seed can subtract the noise). The key is replaced after
    every block, so that a memory image taken later does not reveal earlier noise, and a source of kind "os"
    takes a new key in a forked child, since two processes that share noise would cancel it. Not safe to
    share between threads.
    """

    def __init__(self, key: bytes, kind: Kind) -> None:
        if len(key) != _KEY:
            raise MisuseError(f"A noise key has {_KEY} bytes, got {len(key)}: use NoiseSource.from_os().")
        self.kind: Kind = kind
        self._key = key
        self._buffer = b""
        self._used = 0
        self._process = os.getpid()

    @classmethod
    def from_os(cls) -> NoiseSource:
        """The default everywhere: keyed by 32 bytes of `os.urandom`."""
        return cls(os.urandom(_KEY), "os")

    @classmethod
    def simulated(cls, seed: bytes) -> NoiseSource:
        """A reproducible source for simulations, which protects nothing; `seed` is 32 bytes."""
        if len(seed) != _KEY:
            raise MisuseError(f"A simulated noise seed has {_KEY} bytes, got {len(seed)}: hash your seed with SHA-256.")
        return cls(seed, "simulated")

    def __repr__(self) -> str:
        return f"NoiseSource({self.kind})"

    def __reduce__(self) -> NoReturn:
        raise MisuseError(
            "A NoiseSource cannot be copied or stored: its copy would draw the same noise twice. Make a new one."
        )

    def discrete_gaussian(self, variance: Fraction, size: int) -> NDArray[np.int64]:
        """`size` independent draws of the discrete Gaussian N_Z(0, variance), exactly.

        P(x) is proportional to exp(-x^2 / (2 variance)) over the integers. `variance` is a positive
        rational of at most 2^96 (a larger one, or zero, raises MisuseError). No float takes part, so there
        is nothing to round.
        """
        variance = Fraction(variance)
        if not 0 < variance <= _LARGEST_SCALE**2:
            raise MisuseError(f"Expected 0 < variance = {variance} <= 2^96: give the noise a positive scale.")
        if size < 0:
            raise MisuseError(f"Expected size = {size} >= 0.")
        accepted = np.empty(0, dtype=np.int64)
        while accepted.size < size:
            accepted = np.concatenate([accepted, self._gaussian_batch(variance, 2 * (size - accepted.size) + 8)])
        return accepted[:size]

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal draws, float64, of the given shape.

        Each is four Box-Muller draws summed and halved: finding the noise from the pattern of low bits of a
        released float then means searching the product of four sets of inputs.
        """
        count = math.prod(shape)
        total = sum((self._box_muller(count) for _ in range(4)), np.zeros(count))
        return torch.from_numpy(total / 2).reshape(tuple(shape))

    def poisson_mask(self, rate: Fraction | float, n: int) -> torch.Tensor:
        """Poisson sampling: a bool tensor `(n,)` whose entries are True independently with probability
        `rate`, exactly.

        A float rate is taken as the binary fraction that it is. Raises MisuseError outside 0 < rate <= 1.
        """
        if not 0 < rate <= 1:
            raise MisuseError(f"Expected 0 < rate = {rate} <= 1: the study's public sampling rate is a probability.")
        exact = Fraction(rate)
        return torch.from_numpy(np.asarray(self._below(exact.denominator, n) < exact.numerator, dtype=np.bool_))

    def _gaussian_batch(self, variance: Fraction, trials: int) -> NDArray[np.int64]:
        """Algorithm 3: discrete Laplace candidates of scale t, kept with probability exp(-(|y| - s2/t)^2 /
        (2 s2)).
        """
        a, b = variance.numerator, variance.denominator
        t = math.isqrt(a // b) + 1
        candidates = self._laplace_batch(t, trials)
        gap = np.abs(candidates).astype(object) * (t * b) - a
        return candidates[self._bernoulli_exp(gap * gap, 2 * a * b * t * t)]

    def _laplace_batch(self, t: int, trials: int) -> NDArray[np.int64]:
        """Algorithm 2 with scale t: at most `trials` draws of P(y) proportional to exp(-|y|/t)."""
        low = self._below(t, trials)
        low = low[self._bernoulli_exp_unit(low, t)]
        magnitude = low + t * self._successes(low.size)
        negative = self._below(2, low.size) == 1
        signed = np.where(negative, -magnitude, magnitude)
        twice_zero = negative & (magnitude == 0)  # zero has one sign only
        return np.asarray(signed[~twice_zero], dtype=np.int64)

    def _successes(self, size: int) -> NDArray[np.int64]:
        """How often Bernoulli(exp(-1)) succeeds before it first fails, `size` times."""
        count = np.zeros(size, dtype=np.int64)
        alive = np.arange(size)
        while alive.size:
            alive = alive[self._bernoulli_exp_unit(np.ones(alive.size, dtype=np.int64), 1)]
            count[alive] += 1
        return count

    def _bernoulli_exp(self, numerator: Integers, denominator: int) -> NDArray[np.bool_]:
        """Algorithm 1: True with probability exp(-numerator/denominator), elementwise, for any non-negative
        ratio.
        """
        whole, rest = numerator // denominator, numerator % denominator
        survives = np.asarray(self._successes(numerator.size) >= whole, dtype=np.bool_)
        survives[survives] = self._bernoulli_exp_unit(rest[survives], denominator)
        return survives

    def _bernoulli_exp_unit(self, numerator: Integers, denominator: int) -> NDArray[np.bool_]:
        """Algorithm 1 for ratios in [0, 1]: the first failing k of Bernoulli(ratio/k) is odd with
        probability exp(-ratio).
        """
        odd = np.zeros(numerator.size, dtype=np.bool_)
        alive = np.arange(numerator.size)
        k = 1
        while alive.size:
            success = np.asarray(self._below(denominator * k, alive.size) < numerator[alive], dtype=np.bool_)
            odd[alive[~success]] = k % 2 == 1
            alive = alive[success]
            k += 1
        return odd

    def _below(self, bound: int, size: int) -> Integers:
        """Uniform integers in [0, bound): draws of just enough bits, those past the bound drawn again."""
        bits = (bound - 1).bit_length()
        drawn = self._integers(bits, size)
        while (again := np.flatnonzero(drawn >= bound)).size:
            drawn[again] = self._integers(bits, again.size)
        return drawn

    def _integers(self, bits: int, size: int) -> Integers:
        """Uniform integers of the given number of bits: int64 up to 62 bits, Python's integers above."""
        words = max(1, -(-bits // _WORD))
        parts = np.frombuffer(self._take(8 * words * size), dtype="<u8").reshape(words, size)
        if words == 1:
            return np.asarray(parts[0] & np.uint64((1 << bits) - 1), dtype=np.int64)
        value = np.zeros(size, dtype=object)
        for part in parts:
            value = (value << _WORD) | (part & np.uint64((1 << _WORD) - 1)).astype(object)
        return np.asarray(value >> (words * _WORD - bits), dtype=object)

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        pairs = -(-count // 2)
        words = np.frombuffer(self._take(16 * pairs), dtype="<u8").reshape(2, pairs) >> np.uint64(11)
        uniform = (words.astype(np.float64) + 1.0) * 2.0**-53  # in (0, 1], so that the logarithm is finite
        radius, angle = np.sqrt(-2.0 * np.log(uniform[0])), 2.0 * math.pi * uniform[1]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def _take(self, size: int) -> bytes:
        if self.kind == "os" and self._process != os.getpid():
            self._key, self._buffer, self._used, self._process = os.urandom(_KEY), b"", 0, os.getpid()
        if self._used + size > len(self._buffer):
            self._refill(size)
        taken = self._buffer[self._used : self._used + size]
        self._used += size
        return taken

    def _refill(self, size: int) -> None:
        """One ChaCha20 keystream per key: its first 32 bytes are the next key, the rest is output."""
        rest = self._buffer[self._used :]
        keystream = Cipher(algorithms.ChaCha20(self._key, bytes(16)), mode=None).encryptor()
        stream = keystream.update(bytes(_KEY + max(_BLOCK, size)))
        self._key, self._buffer, self._used = stream[:_KEY], rest + stream[_KEY:], 0
