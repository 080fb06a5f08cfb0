"""Tables 2, 3, 7, 8 and 9 and figures 3, 5, 6, 7 and 8: how the model is quantized, and for how long it is trained."""

from dqrm_cpu.lab.reproduce.experiments.definition import (
    BASELINE,
    FP32,
    FP32_MLP,
    Compression,
    Experiment,
    Family,
    Paper,
    Plot,
    Show,
    Variant,
    method,
)


def _fp32(paper: Paper) -> Variant:
    return Variant(BASELINE, FP32, paper)


def _pair(label: str, name: str, papers: tuple[Paper, Paper]) -> tuple[Variant, Variant]:
    """Makes two variants: the model in INT4, and with its MLPs left in FP32."""
    return (
        Variant(f"{label} INT4", method(name), papers[0]),
        Variant(f"{label} INT4, MLP in FP32", method(name) | FP32_MLP, papers[1]),
    )


def _embedding_bits(bits: int, paper: Paper) -> Variant:
    """Makes the variant with DQRM on the tables alone."""
    return Variant(f"INT{bits} embeddings", method("dqrm", embedding_bits=bits) | FP32_MLP, paper)


TABLE_2 = Experiment(
    "table2",
    "Table 2: bits of the embedding tables",
    "Tables trained at each width, MLPs in FP32. The paper: fewer bits overfit less, INT4 is best, INT2 loses.",
    (
        _fp32(Paper(78.923, 0.8047)),
        _embedding_bits(16, Paper(78.928, 0.8046)),
        _embedding_bits(8, Paper(78.985, 0.8054)),
        _embedding_bits(4, Paper(79.092, 0.8073)),
        _embedding_bits(2, Paper(note="loses accuracy (no figure given)")),
    ),
    BASELINE,
)

TABLE_3A = Experiment(
    "table3a",
    "Table 3a: methods, on the Kaggle model",
    "Every method in INT4, with the MLPs quantized or not. PTQ quantizes the chosen FP32 checkpoint; row-wise PTQ is "
    "what production systems do. The paper's HAWQ is DQRM whose scales are found at every step; its PACT is DoReFa's "
    "tanh without a learned clip, ours learns the clip as published (figure8 has both).",
    (
        _fp32(Paper(78.923, 0.8047, 0.304, 7, 2.161)),
        Variant("PTQ INT4", FP32, Paper(76.571, 0.7675, size_gb=0.270), compression=Compression.PER_TABLE),
        *_pair(
            "PACT",
            "pact",
            (Paper(size_gb=0.270, note="cannot converge"), Paper(78.858, 0.8040, 0.303, 69, 0.271)),
        ),
        *_pair("LSQ", "lsq", (Paper(78.972, 0.8051, 0.350, 25, 0.270), Paper(78.987, 0.8059, 0.352, 21, 0.271))),
        *_pair("HAWQ", "hawq", (Paper(79.040, 0.8064, 0.437, 31, 0.270), Paper(79.070, 0.8075, 0.436, 27, 0.271))),
        *_pair("DQRM", "dqrm", (Paper(79.071, 0.8073, 0.437, 22, 0.270), Paper(79.092, 0.8073, 0.436, 20, 0.271))),
        Variant("row-wise PTQ INT4, MLP in FP32", FP32, compression=Compression.ROW_WISE),
    ),
    BASELINE,
    shows=(Show.SIZE, Show.LOSS, Show.MS_PER_STEP),
)

TABLE_3B = Experiment(
    "table3b",
    "Table 3b: methods, on the Terabyte model",
    "Rows of 64 values and fewer, larger steps. The paper could not finish PACT and HAWQ (over 1,000 ms a step).",
    (
        _fp32(Paper(81.165, 0.8004, 0.347, 19, 12.575)),
        Variant("PTQ INT4", FP32, Paper(78.681, 0.7283, size_gb=1.572), compression=Compression.PER_TABLE),
        Variant("PACT INT4", method("pact"), Paper(size_gb=1.572, note="cannot finish, over 1,000 ms a step")),
        Variant("HAWQ INT4", method("hawq"), Paper(size_gb=1.572, note="cannot finish, over 1,000 ms a step")),
        *_pair("LSQ", "lsq", (Paper(81.134, 0.7996, 0.350, 42, 1.572), Paper(81.127, 0.7998, 0.356, 42, 1.572))),
        *_pair("DQRM", "dqrm", (Paper(81.210, 0.8015, 0.410, 29, 1.572), Paper(81.200, 0.8010, 0.412, 29, 1.572))),
    ),
    BASELINE,
    Family.TERABYTE,
    shows=(Show.SIZE, Show.LOSS, Show.MS_PER_STEP),
)

TABLE_7 = Experiment(
    "table7",
    "Table 7: which part of the model is quantized",
    "The paper: tables gain, MLPs lose a little, and one scale a layer (matrix-wise) costs more than one a row.",
    (
        _fp32(Paper(78.718, 0.8001)),
        Variant("+ embeddings INT4", method("dqrm") | FP32_MLP, Paper(78.936, 0.8040)),
        Variant("+ MLP INT4, matrix-wise", method("dqrm", mlp_granularity="matrix"), Paper(78.830, 0.8022)),
        Variant("+ MLP INT4, channel-wise", method("dqrm"), Paper(78.897, 0.8035)),
        Variant("+ MLP INT8, channel-wise", method("dqrm", mlp_bits=8), Paper(78.950, 0.8045)),
    ),
    BASELINE,
)

_PRETRAINED = Variant(
    "pre-trained in FP32 (paper: 1 epoch of 5), then INT4",
    method("dqrm") | FP32_MLP,
    Paper(78.926, 0.8039),
    pretrain_epochs=1,
)
_FROM_SCRATCH = Variant("INT4 from scratch", method("dqrm") | FP32_MLP, Paper(78.936, 0.8040))

TABLE_8 = Experiment(
    "table8",
    "Table 8: pre-training in FP32",
    "The same number of epochs in all. The paper: pre-training gains nothing and overfits sooner.",
    (_FROM_SCRATCH, _PRETRAINED),
    _FROM_SCRATCH.name,
    plot=Plot.ACCURACY_AND_LOSS,
)

_LONG_DQRM = Variant("DQRM INT4, 20 epochs", method("dqrm") | FP32_MLP, epochs=20)

TABLE_9 = Experiment(
    "table9",
    "Table 9: INT4 for a large number of epochs",
    "One run, scored on validation after each epoch; test is scored once, at the end. The paper scored test each time: "
    "a peak after epoch 11, overfitting by epoch 20.",
    (_LONG_DQRM,),
    _LONG_DQRM.name,
    plot=Plot.ACCURACY_AND_LOSS,
    by_epoch=(1, 5, 10, 11, 15, 20),
    paper_by_epoch={
        1: Paper(78.581, 0.7967),
        5: Paper(78.949, 0.8050),
        10: Paper(79.092, 0.8073),
        11: Paper(79.092, 0.8076, note="the paper's peak"),
        15: Paper(78.743, 0.8009),
        20: Paper(78.219, 0.7499),
    },
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

FIGURE_5 = Experiment(
    "figure5",
    "Figure 5: with and without pre-training",
    "The paper: after an epoch in FP32 the training loss falls faster, and overfitting comes sooner.",
    (_FROM_SCRATCH, _PRETRAINED),
    _FROM_SCRATCH.name,
    plot=Plot.ACCURACY_AND_LOSS,
)

FIGURE_6_7 = Experiment(
    "figure6-7",
    "Figures 6 and 7: the weights of one table while it is trained",
    "Before training and after 2, 3 and 5 of the paper's 5 epochs. The weights begin uniform and spread outwards into "
    "a bell. INT8 follows them closely; INT4 keeps most of them at zero, and some apart from it.",
    tuple(
        Variant(name, settings | {"train.keep_checkpoints": 100}, histograms=True)
        for name, settings in (
            (BASELINE, FP32),
            ("INT4", method("dqrm") | FP32_MLP),
            ("INT8", method("dqrm", embedding_bits=8) | FP32_MLP),
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
        _fp32(Paper()),
        _LONG_DQRM,
        Variant("LSQ INT4, MLP in FP32", method("lsq") | FP32_MLP),
        Variant("PACT INT4, MLP in FP32", method("pact") | FP32_MLP),
        Variant("DoReFa INT4, MLP in FP32", method("dorefa") | FP32_MLP),
    ),
    BASELINE,
    plot=Plot.ACCURACY_AND_LOSS,
)
