"""How a run finds its tables' scales, by its configuration: read off the tracker or the tables, and how often."""

from dqrm_cpu.config import QuantConfig

_METHODS = ("dqrm", "hawq", "dorefa")


def finds(quant: QuantConfig) -> bool:
    """Whether scales follow from max|W| while a run trains."""
    return quant.method in _METHODS


def tracks(quant: QuantConfig) -> bool:
    """Whether max|W| is kept up to date by the updates."""
    return quant.method in ("dqrm", "dorefa") and quant.scale_finder == "track"


def period(quant: QuantConfig) -> int:
    """Iterations from one search to the next; hawq asks for one at every step."""
    return 1 if quant.method == "hawq" else quant.scale_period


def scans_every_step(quant: QuantConfig) -> bool:
    """Whether each step reads whole tables."""
    return finds(quant) and not tracks(quant) and period(quant) == 1


def mend(quant: QuantConfig) -> str:
    """What to change where the search takes too much of a step."""
    if quant.method == "hawq":
        return "that is hawq, which reads every table; --quant.method dqrm has the same scales without"
    if tracks(quant):
        return "they are tracked already; a longer --quant.scale-period helps"
    return "use --quant.scale-finder track, or a longer --quant.scale-period"
