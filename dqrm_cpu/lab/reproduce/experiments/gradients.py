"""Tables 6 and 10 and figure 4: what rounding gradients between ranks costs, with ranks simulated in one process."""

from dqrm_cpu.lab.reproduce.experiments.definition import Experiment, Family, Paper, Plot, Variant, method


def _simulated(name: str, ranks: int, paper: Paper, **comm: str) -> Variant:
    """Makes the model in INT4, data parallel over simulated ranks; `comm` are settings of that section."""
    settings = method("dqrm") | {"comm.simulated_ranks": ranks}
    return Variant(name, settings | {f"comm.{key}": value for key, value in comm.items()}, paper)


_FP32_GRADIENTS = _simulated("FP32 gradients", 4, Paper(78.897, 0.8035))

TABLE_6 = Experiment(
    "table6",
    "Table 6: INT8 gradients and error compensation",
    "Four simulated ranks. The paper: rounding the tables' gradients costs little, the MLPs' more, and giving back "
    "what rounding took from the MLPs repairs most of it.",
    (
        _FP32_GRADIENTS,
        _simulated("embedding gradients INT8", 4, Paper(78.858, 0.8023), wire="int8"),
        _simulated("embedding and MLP INT8", 4, Paper(78.608, 0.7974), wire="int8", mlp_gradients="int8"),
        _simulated(
            "embedding and MLP INT8, MLP error feedback",
            4,
            Paper(78.840, 0.8023),
            wire="int8",
            mlp_gradients="int8",
            error_feedback="mlp",
        ),
    ),
    _FP32_GRADIENTS.name,
)

_INT8 = {"wire": "int8", "mlp_gradients": "int8", "error_feedback": "mlp"}

_ONE_NODE = _simulated("1 node", 1, Paper(), **_INT8)

TABLE_10 = Experiment(
    "table10",
    "Table 10: INT8 gradients on more nodes",
    "The batch is split over simulated nodes, gradients travel in INT8 with error feedback of the MLPs. The paper: a "
    "small, steady loss with the number of nodes. Its figures are missing from the text that we have.",
    (_ONE_NODE, *(_simulated(f"{nodes} nodes", nodes, Paper(), **_INT8) for nodes in (2, 4, 8))),
    _ONE_NODE.name,
    Family.TERABYTE,
)

_UNROUNDED = _simulated("FP32 gradients", 4, Paper())

FIGURE_4 = Experiment(
    "figure4",
    "Figure 4: gradients rounded to integers",
    "Four simulated ranks. The paper rounded naively, all gradients to INT16 and INT8 (left), and tables or MLPs alone "
    "(right), and found the MLPs sensitive. MLP gradients are sent in INT8 or BF16 here, with a scale for each block "
    "of 1,024.",
    (
        _UNROUNDED,
        _simulated("tables INT16", 4, Paper(), wire="int16"),
        _simulated("tables INT8", 4, Paper(), wire="int8"),
        _simulated("MLPs INT8", 4, Paper(), mlp_gradients="int8"),
        _simulated("tables and MLPs INT8", 4, Paper(), wire="int8", mlp_gradients="int8"),
    ),
    _UNROUNDED.name,
    plot=Plot.ACCURACY,
)
