"""How a run finds its tables' scales, by its configuration: read off the tracker or the tables, and how often."""

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.config.schema import TRAINED_UNIFORM_METHODS
from dqrm_cpu.quant.formula import Array


def finds_scales(quant: QuantConfig) -> bool:
    """Tells whether scales follow from max|W| while a run trains."""
    return quant.method in (*TRAINED_UNIFORM_METHODS, "dorefa")


def tracks_absmax(quant: QuantConfig) -> bool:
    """Tells whether max|W| is kept up to date by the updates; hawq reads whole tables, as published."""
    return finds_scales(quant) and quant.method != "hawq" and quant.scale_finder == "track"


def scale_period(quant: QuantConfig) -> int:
    """Returns the iterations from one search to the next; hawq asks for one at every step."""
    return 1 if quant.method == "hawq" else quant.scale_period


def ramped_widths(final: Array, iterations: int, iteration: int) -> Array:
    """Returns the widths f32[T] of an iteration, on their way from 1 to the final ones in so many iterations.

    Before any training, which is iteration -1, they are the final ones.
    """
    share = 1.0 if iteration < 0 or not iterations else min((iteration + 1) / iterations, 1.0)
    return 1 + (final - 1) * share


def scans_every_step(quant: QuantConfig) -> bool:
    """Tells whether each step reads whole tables."""
    return finds_scales(quant) and not tracks_absmax(quant) and scale_period(quant) == 1


def advice(quant: QuantConfig) -> str:
    """Says what to change where the search takes too much of a step."""
    if quant.method == "hawq":
        return "that is hawq, which reads every table; --quant.method dqrm has the same scales without"
    if tracks_absmax(quant):
        return "they are tracked already; a longer --quant.scale-period helps"
    return "use --quant.scale-finder track, or a longer --quant.scale-period"
