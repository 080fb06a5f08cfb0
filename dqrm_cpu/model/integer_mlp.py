"""An MLP whose products in training are of whole numbers; scored, it multiplies in FP32, as exported models do."""

from collections.abc import Sequence

from torch import Tensor

from dqrm_cpu.config.schema import MOST_INTEGER_TERMS
from dqrm_cpu.errors import ConfigError
from dqrm_cpu.kernels.integer_layers import IntegerShape, integer_layers
from dqrm_cpu.model.gemm import Gemm
from dqrm_cpu.model.layers import LayerParameters
from dqrm_cpu.model.mlp import Mlp
from dqrm_cpu.model.mlp_weights import MakeWeights, WeightSource
from dqrm_cpu.model.shapes import LayerShape
from dqrm_cpu.quant.rounding import RoundingKey

_LARGEST_CODE = 127


class IntegerMlp(Mlp):
    """Products of codes of 8 bits (`kernels/integer_layers.py`), gradients rounded by chance."""

    def __init__(
        self, source: WeightSource, quantized: MakeWeights | None, gemm: Gemm, first_inputs: int, largest_code: int
    ) -> None:
        """Of the layers.

        :param gemm: multiplies where the model is scored.
        :param first_inputs: so many inputs of the first layer have a scale of their own in each row.
        :param largest_code: of quantized weights, by `mlp_weights.largest_row_code`.
        """
        super().__init__(source, quantized, gemm, lambda layer, x: x)
        _require_narrow(self.shapes)
        self._integers = integer_layers(
            [
                IntegerShape(
                    shape.inputs,
                    shape.outputs,
                    shape.relu,
                    shape.inputs if i else first_inputs,
                    is_unsigned=i > 0 and self.shapes[i - 1].relu,
                )
                for i, shape in enumerate(self.shapes)
            ]
        )
        self._largest_code = largest_code
        self._step: RoundingKey | None = None
        self._share: RoundingKey | None = None

    def begin_step(self, key: RoundingKey | None) -> None:
        """Takes the codes of the weights, after `follow_weights`; without a key the model is scored, in FP32."""
        self._step = self._share = key
        if key is None:
            return
        largest = _LARGEST_CODE if self._weights is self._plain else self._largest_code
        self._integers.follow(self._weights.layers, largest)

    def begin_share(self, number: int) -> None:
        """Has the gradients of a rank's share of the batch, real or simulated, rounded by chances of their own."""
        self._share = None if self._step is None else self._step.of(number)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x f32[B, inputs] to f32[B, outputs]; in training that is valid until the next forward."""
        if self._share is None:
            return super().forward(x)
        self._forget()
        return self._integers.forward(x.contiguous())

    def backward(
        self,
        grad: Tensor,
        gradients: Sequence[LayerParameters],
        scale_gradients: Sequence[Tensor],
        needs_grad_input: bool,
    ) -> Tensor | None:
        """Writes the gradients of parameters and of learned scales; returns that of the input where needed."""
        assert self._share is not None, "the forward was that of a model that is scored"
        of_input = self._integers.backward(grad, self._share.word, gradients, needs_grad_input)
        self._complete(gradients, scale_gradients)
        return of_input


def _require_narrow(shapes: Sequence[LayerShape]) -> None:
    """Refuses layers whose sums might not fit into int32."""
    widest = max(max(shape.inputs, shape.outputs) for shape in shapes)
    if widest > MOST_INTEGER_TERMS:
        raise ConfigError(
            f"train.precision int8 sums the products of up to {MOST_INTEGER_TERMS:,} inputs, a layer of this model has "
            f"{widest:,}; set train.precision to bf16 or fp32"
        )
