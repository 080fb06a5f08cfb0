"""Tables 4 and 5, figures 1c and 10: what gradients weigh between ranks, what finding scales costs, where time goes."""

from dqrm_cpu.lab.reproduce.experiments.definition import (
    FP32,
    Experiment,
    Family,
    Paper,
    Plot,
    Settings,
    Show,
    Variant,
    method,
)

_FEW_STEPS: Settings = {"train.max_steps": 300, "train.log_every": 50}
_FEWEST_STEPS: Settings = {"train.max_steps": 20, "train.log_every": 10}


def _two_ranks(name: str, paper: Paper, more: Settings, **comm: str) -> Variant:
    settings = {**method("dqrm"), **{f"comm.{key}": value for key, value in comm.items()}, **more}
    return Variant(name, settings, paper, epochs=1, processes=2, small_tables=comm["wire"] == "dense")


_SPARSE = _two_ranks("sparse FP32", Paper(ms_per_step=61, note="2.010 MB"), _FEW_STEPS, wire="sparse")

TABLE_4 = Experiment(
    "table4",
    "Table 4: gradients between ranks",
    "Two real ranks on this machine, over gloo; bytes are what rank 0 hands over. The paper's are of four GPUs on the "
    "Kaggle model: there INT8 is slower than sparse FP32, because the integers travel in FP32 containers (our "
    "int8-fp32). Ranks of one machine share its memory and its cores: times between machines differ, bytes do not. "
    "table6 has what rounding costs in accuracy.",
    (
        _two_ranks("dense", Paper(note="2.161 GB, over 1,000 ms"), _FEWEST_STEPS, wire="dense"),
        _SPARSE,
        _two_ranks(
            "INT8 in FP32 containers",
            Paper(ms_per_step=110, note="0.509 MB if packed"),
            _FEW_STEPS,
            wire="int8-fp32",
            mlp_gradients="int8",
            error_feedback="mlp",
        ),
        _two_ranks("INT8", Paper(), _FEW_STEPS, wire="int8", mlp_gradients="int8", error_feedback="mlp"),
    ),
    _SPARSE.name,
    shows=(Show.BYTES_SENT, Show.MS_PER_STEP),
    scores=False,
)


def _period(name: str, finder: str, period: int, family: Family, ms: float | None, note: str = "") -> Variant:
    settings = method("dqrm", scale_finder=finder, scale_period=period)
    first = f"{family.value}, scan every step"
    paper = Paper(ms_per_step=ms, note=note)
    return Variant(f"{family.value}, {name}", settings, paper, family=family, against=first)


_KAGGLE_FIRST = _period("scan every step", "scan", 1, Family.KAGGLE, 31)

TABLE_5 = Experiment(
    "table5",
    "Table 5: how often scales are found",
    "The paper scans whole tables, and does so seldom because a scan is slow. Our tracker keeps max|W| exact at every "
    "update, so that scales of every step cost next to nothing. What a scan costs grows with the tables: compare "
    "`dqrm-cpu bench step`, which times the paper's sizes.",
    (
        _KAGGLE_FIRST,
        _period("scan every 200", "scan", 200, Family.KAGGLE, 22),
        _period("scan every 500", "scan", 500, Family.KAGGLE, None),
        _period("tracked, every step", "track", 1, Family.KAGGLE, None),
        _period("scan every step", "scan", 1, Family.TERABYTE, 1200, "over 1,200 ms"),
        _period("scan every 200", "scan", 200, Family.TERABYTE, 57),
        _period("scan every 500", "scan", 500, Family.TERABYTE, 34),
        _period("tracked, every step", "track", 1, Family.TERABYTE, None),
    ),
    _KAGGLE_FIRST.name,
    shows=(Show.MS_PER_STEP, Show.LOSS),
)


def _timed(family: Family, name: str, settings: Settings) -> Variant:
    return Variant(f"{family.value}, {name}", {**settings, **_FEW_STEPS}, epochs=1, family=family)


FIGURE_1C = Experiment(
    "figure1c",
    "Figure 1c: where the time of a step goes",
    "One process. The paper: found at every step, scales take over a third of a step on a GPU and over 97% on a CPU "
    "with the Terabyte model. The share grows with the tables: at the small scale they are small.",
    tuple(
        _timed(family, name, settings)
        for family in Family
        for name, settings in (
            ("FP32", FP32),
            ("INT4, scan every step", method("dqrm", scale_finder="scan")),
            ("INT4, scan every 200", method("dqrm", scale_finder="scan", scale_period=200)),
            ("INT4, tracked every step", method("dqrm")),
        )
    ),
    "kaggle, FP32",
    shows=(Show.MS_PER_STEP, Show.PHASES),
    plot=Plot.PHASES,
    scores=False,
)

_FEW_STEPS_SELDOM: Settings = {**_FEW_STEPS, "quant.scale_finder": "scan", "quant.scale_period": 1000}

FIGURE_10 = Experiment(
    "figure10",
    "Figure 10: where the time of a step goes with two ranks",
    "Two real ranks of one machine, over gloo, scales found every 1,000 steps as in the paper, where the exchange of "
    "gradients is most of a step, and updates are slow on CPUs.",
    (
        _two_ranks("two ranks, sparse FP32", Paper(), _FEW_STEPS_SELDOM, wire="sparse"),
        _two_ranks("two ranks, INT8", Paper(), _FEW_STEPS_SELDOM, wire="int8", mlp_gradients="int8"),
    ),
    "two ranks, sparse FP32",
    shows=(Show.BYTES_SENT, Show.MS_PER_STEP, Show.PHASES),
    plot=Plot.PHASES,
    scores=False,
)
