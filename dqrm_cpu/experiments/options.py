"""Options: what else can be quantized, rounded or masked, one at a time."""

from dqrm_cpu.experiments.experiment import Experiment, Show, Variant
from dqrm_cpu.experiments.model_tables import method

_PLAIN = Variant("INT4", method("dqrm"))


def _with(name: str, **quant: str) -> Variant:
    return Variant(f"INT4, {name}", method("dqrm", **quant))


OPTIONS = Experiment(
    "options",
    "Options: activations, biases, rounding, clipped weights",
    "Ours; tables and MLPs are in INT4. Activations are what the layers of the MLPs read, of the top MLP also what the "
    "interaction makes. Rounding by chance is for training; scores and files round to the nearest. At half the width "
    "large weights are clipped, and the mask keeps gradients from them.",
    (
        _PLAIN,
        _with("activations INT8", activation_bits="8"),
        _with("activations INT4", activation_bits="4"),
        _with("MLP biases INT8", mlp_bias_bits="8"),
        _with("tables rounded by chance", rounding="stochastic"),
        _with("MLPs rounded by chance", mlp_rounding="stochastic"),
        _with("half the width", step_width="0.5"),
        _with("half the width, clipped weights masked", step_width="0.5", clip_mask="true"),
    ),
    _PLAIN.name,
    shows=(Show.LIVE_ROWS, Show.LOSS, Show.MS_PER_STEP),
)
