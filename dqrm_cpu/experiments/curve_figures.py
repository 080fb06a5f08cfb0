"""Figures 3 to 8: accuracy, loss and weights while a model is trained."""

from dqrm_cpu.experiments.exchange_tables import four_ranks
from dqrm_cpu.experiments.experiment import Experiment, Paper, Plot, Variant
from dqrm_cpu.experiments.model_tables import (
    BASELINE,
    FP32_MLP,
    FROM_SCRATCH,
    LONG_DQRM,
    PRETRAINED,
    TABLE_2,
    fp32,
    method,
)

FIGURE_3 = Experiment(
    "figure3",
    "Figure 3: overfitting, by bits of the tables",
    "FP32 rises, peaks and falls while its training loss collapses. In the paper INT16 and INT8 follow it, INT4 keeps "
    "rising for five epochs.",
    TABLE_2.variants,
    BASELINE,
    plot=Plot.ACCURACY_AND_LOSS,
)

_FP32_GRADIENTS = four_ranks("FP32 gradients")

FIGURE_4 = Experiment(
    "figure4",
    "Figure 4: gradients rounded to integers",
    "Four simulated ranks. The paper rounded naively, all gradients to INT16 and INT8 (left), and tables or MLPs alone "
    "(right), and found the MLPs sensitive. MLP gradients are sent in INT8 or BF16 here, with a scale for each block "
    "of 1,024.",
    (
        _FP32_GRADIENTS,
        four_ranks("tables INT16", wire="int16"),
        four_ranks("tables INT8", wire="int8"),
        four_ranks("MLPs INT8", mlp_gradients="int8"),
        four_ranks("tables and MLPs INT8", wire="int8", mlp_gradients="int8"),
    ),
    _FP32_GRADIENTS.name,
    plot=Plot.ACCURACY,
)

FIGURE_5 = Experiment(
    "figure5",
    "Figure 5: with and without pre-training",
    "The paper: after an epoch in FP32 the training loss falls faster, and overfitting comes sooner.",
    (FROM_SCRATCH, PRETRAINED),
    FROM_SCRATCH.name,
    plot=Plot.ACCURACY_AND_LOSS,
)

_WITH_HISTOGRAMS = {"train.keep_checkpoints": "100"}

FIGURE_6_7 = Experiment(
    "figure6-7",
    "Figures 6 and 7: the weights of one table while it is trained",
    "Before training and after 2, 3 and 5 of the paper's 5 epochs. The weights begin uniform and spread outwards into "
    "a bell. INT8 follows them closely; INT4 keeps most of them at zero, and some apart from it.",
    tuple(
        Variant(name, settings | _WITH_HISTOGRAMS, histograms=True)
        for name, settings in (
            (BASELINE, method("none")),
            ("INT4", method("dqrm") | FP32_MLP),
            ("INT8", method("dqrm", embedding_bits="8") | FP32_MLP),
        )
    ),
    BASELINE,
    plot=Plot.HISTOGRAMS,
    one_seed=True,
)

FIGURE_8 = Experiment(
    "figure8",
    "Figure 8: INT4 for 20 epochs, and other methods",
    "The paper's left panel follows INT4 for 20 epochs beside FP32, its right one compares methods: PACT (there "
    "DoReFa's tanh) learns fastest and overfits most, LSQ less, DQRM least.",
    (
        fp32(Paper()),
        LONG_DQRM,
        Variant("LSQ INT4, MLP in FP32", method("lsq") | FP32_MLP),
        Variant("PACT INT4, MLP in FP32", method("pact") | FP32_MLP),
        Variant("DoReFa INT4, MLP in FP32", method("dorefa") | FP32_MLP),
    ),
    BASELINE,
    plot=Plot.ACCURACY_AND_LOSS,
)
