"""What an optimizer does to one row; the one place that updates and applications of merged gradients share."""

from typing import Any, NamedTuple

import numpy as np

from .compiled import inlined
from .memory import float_at, set_float
from .vector import LANES, add, load_part, multiply, multiply_add, splat, store_part, subtract, total
from .words import larger, magnitude, no_words


class Rule(NamedTuple):
    """SGD, or row-wise Adagrad where there is an accumulator."""

    lr: np.float32
    weight_decay: np.float32
    eps: np.float32
    accumulator: int  # address of f32[R]; 0: SGD


@inlined
def _decayed(gradient: int, weight: int, k: int, count: int, weight_decay: np.float32) -> Any:
    """g + weight_decay w of one vector."""
    g = load_part(gradient, k, count)
    if weight_decay != np.float32(0):
        g = add(g, multiply(splat(weight_decay), load_part(weight, k, count)))
    return g


@inlined
def _rate(rule: Rule, gradient: int, weight: int, arena_row: int, dim: int) -> Any:
    """The row's learning rate, after its accumulator has grown."""
    if rule.accumulator == 0:
        return rule.lr
    squares = splat(np.float32(0))
    for k in range(0, dim, LANES):
        g = _decayed(gradient, weight, k, dim - k, rule.weight_decay)
        squares = multiply_add(g, g, squares)
    summed = float_at(rule.accumulator, arena_row) + total(squares) / np.float32(dim)
    set_float(rule.accumulator, arena_row, summed)
    return rule.lr / (np.sqrt(summed) + rule.eps)


@inlined
def step_row(rule: Rule, weight: int, arena_row: int, dim: int, gradient: int) -> Any:
    """Updates a row with the gradient at an address; returns the magnitudes of the new row, folded into one vector."""
    place = weight + 4 * arena_row * dim
    rate = splat(_rate(rule, gradient, place, arena_row, dim))
    words = no_words()
    for k in range(0, dim, LANES):
        g = _decayed(gradient, place, k, dim - k, rule.weight_decay)
        # Product and difference are rounded apart, as in the other implementations.
        w = subtract(load_part(place, k, dim - k), multiply(rate, g))
        store_part(place, k, w, dim - k)
        words = larger(words, magnitude(w))
    return words
