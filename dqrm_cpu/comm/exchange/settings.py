"""What gradients look like between ranks: the choices of a run."""

from dataclasses import dataclass

from dqrm_cpu.errors import ConfigError

TRANSPORT_NAMES = ("auto", "oneccl", "mpi", "gloo", "nccl", "sim")
CCL_BINDINGS = "oneccl_bindings_for_pytorch"

WIRES = ("dense", "sparse", "int8", "int8-fp32", "int16", "int16-fp32")
MLP_FORMS = ("fp32", "bf16", "int8")
SCALE_REDUCTIONS = ("max", "mean")
ERROR_FEEDBACKS = ("none", "mlp", "all")
ROUNDINGS = ("nearest", "stochastic")
SIMULATED_SCALES = ("all", "first")
OVERLAPS = ("auto", "on", "off")

INTEGER_LIMITS = {"int8": 127, "int16": 32767}
"""The largest code of a width; -limit is the smallest, so that both signs saturate alike."""


@dataclass(frozen=True)
class WireSettings:
    """The defaults change no bit of a gradient."""

    wire: str = "sparse"  # one of WIRES; <width>-fp32 carries integers in FP32 containers
    scale_reduce: str = "max"  # of the ranks' abs-max; mean saturates where a rank is above it
    mlp_gradients: str = "fp32"
    error_feedback: str = "none"
    simulated_scale: str = "all"  # first: the first micro-batch's own scale serves the others (Algorithm 1)
    rounding: str = "nearest"  # of integers: of tables, and of INT8 gradients of MLPs
    seed: int = 0  # of stochastic rounding
    overlap: str = "auto"  # of the tables' message with what is left of the backward, and with the MLPs' exchange

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"comm.{name} {value!r} does not exist: choose one of {', '.join(choices)}.")

    @property
    def integer_wire(self) -> bool:
        return self.wire.partition("-")[0] in INTEGER_LIMITS

    @property
    def exact(self) -> bool:
        """Whether every rank's gradient arrives as it is."""
        return not self.integer_wire and self.mlp_gradients == "fp32"


_CHOICES = {
    "wire": WIRES,
    "scale_reduce": SCALE_REDUCTIONS,
    "mlp_gradients": MLP_FORMS,
    "error_feedback": ERROR_FEEDBACKS,
    "simulated_scale": SIMULATED_SCALES,
    "rounding": ROUNDINGS,
    "overlap": OVERLAPS,
}
