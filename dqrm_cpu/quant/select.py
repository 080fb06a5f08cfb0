"""The formula that the configuration names, for tables or MLPs at their bits."""

from dqrm_cpu.config import QuantConfig
from dqrm_cpu.quant.dorefa import DoReFa
from dqrm_cpu.quant.formula import Formula, FoundScale, LearnedScale
from dqrm_cpu.quant.lsq import Lsq
from dqrm_cpu.quant.pact import Pact
from dqrm_cpu.quant.uniform import Uniform


def found_formula(quant: QuantConfig, bits: int) -> FoundScale | None:
    """None: FP32, or a method that learns its scales."""
    match quant.method:
        case "dqrm" | "hawq" | "ptq":
            return Uniform(bits, quant.clip_mask)
        case "dorefa":
            return DoReFa(bits)
    return None


def learned_formula(quant: QuantConfig, bits: int) -> LearnedScale | None:
    """None: FP32, or a method whose scales are found."""
    match quant.method:
        case "lsq":
            return Lsq(bits)
        case "pact":
            return Pact(bits)
    return None


def select_formula(quant: QuantConfig, bits: int) -> Formula | None:
    """None: FP32."""
    return found_formula(quant, bits) or learned_formula(quant, bits)
