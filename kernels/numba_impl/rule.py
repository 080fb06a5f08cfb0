"""What an optimizer does to one row; the one place that updates and applications of merged gradients share."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import serial
from .vector import (
    LANES,
    add,
    address,
    larger,
    load_part,
    magnitude,
    multiply,
    multiply_add,
    no_words,
    splat,
    store_part,
    subtract,
    total,
)


class Rule(NamedTuple):
    """SGD, or row-wise Adagrad where the accumulator f32[R] is not empty."""

    lr: np.float32
    weight_decay: np.float32
    eps: np.float32
    accumulator: NDArray[np.float32]


@serial
def _decayed(gradient: int, weight: int, k: int, count: int, weight_decay: np.float32) -> object:
    """g + weight_decay w of one vector; both are addresses."""
    g = load_part(gradient, k, count)
    if weight_decay != np.float32(0):
        g = add(g, multiply(splat(weight_decay), load_part(weight, k, count)))
    return g


@serial
def _rate(rule: Rule, gradient: int, weight: int, arena_row: int, dim: int) -> np.float32:
    """The row's learning rate, after its accumulator has grown."""
    if rule.accumulator.size == 0:
        return rule.lr
    squares = splat(np.float32(0))
    for k in range(0, dim, LANES):
        g = _decayed(gradient, weight, k, dim - k, rule.weight_decay)
        squares = multiply_add(g, g, squares)
    rule.accumulator[arena_row] += total(squares) / np.float32(dim)
    return rule.lr / (np.sqrt(rule.accumulator[arena_row]) + rule.eps)


@serial
def step_row(rule: Rule, weight: NDArray[np.float32], arena_row: int, gradient: int) -> object:
    """Updates a row with the gradient at an address; returns the magnitudes of the new row, folded into one vector."""
    dim = weight.shape[1]
    place = address(weight, arena_row * dim)
    rate = splat(_rate(rule, gradient, place, arena_row, dim))
    words = no_words()
    for k in range(0, dim, LANES):
        g = _decayed(gradient, place, k, dim - k, rule.weight_decay)
        # Product and difference are rounded apart, as in the other implementations.
        w = subtract(load_part(place, k, dim - k), multiply(rate, g))
        store_part(place, k, w, dim - k)
        words = larger(words, magnitude(w))
    return words
