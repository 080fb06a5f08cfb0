"""What a reader should change: each warning says what was found, in figures, and what would mend it."""

import shlex
from collections.abc import Callable, Iterator
from statistics import fmean, median

from dqrm_cpu.base.wording import counted, longer
from dqrm_cpu.metrics.click import FIGURE_NAMES
from dqrm_cpu.quant import scale_schedule
from dqrm_cpu.report.phases import EXCHANGE, Bar, bar_of, working_ms
from dqrm_cpu.report.run_files import RunFiles
from dqrm_cpu.timing.phases import OCCASIONS, Phase
from dqrm_cpu.timing.spans import SpanSummary

SCALE_SHARE, COVERED_SHARE, UNEVEN_RATIO = 0.05, 0.97, 1.5
"""Of a step: what finding scales may take, what phases cover at least; how far its mean may lie above its median."""

_DATA_SHARE = 0.15
_EXCHANGE_SHARE = 0.3
_BETWEEN_SHARE = 0.3
_STRAGGLER_RATIO = 1.15
_CLIP_RATE = 0.01
_OVERFIT = 0.002  # of AUC, log loss or normalized entropy
_PATIENCE = 2


def warnings_of(run: RunFiles) -> list[str]:
    """Lists what to change in a run; empty where there is nothing to mend."""
    rules: list[Callable[[RunFiles], Iterator[str]]] = [_spans, _ranks, _threads, _clipping, _overfitting, _unfinished]
    return [f"{run.name}: {text}" for rule in rules for text in rule(run)]


def _spans(run: RunFiles) -> Iterator[str]:
    if not run.spans:
        when = "yet" if run.result is None else "or they are gone"
        yield f"no spans were recorded {when}, so nothing can be said about its time: they are written at checkpoints."
        return
    summary = run.spans[0].summary
    bar = bar_of(run.name, summary)
    if not bar.step_ms:
        return
    yield from _scale(run, bar)
    yield from _waiting(run, bar)
    if summary.covered < COVERED_SHARE:
        outside = 1 - summary.covered
        yield f"{outside:.0%} of a step is outside every phase: look at it with dqrm-cpu profile --torch-profiler."
    if summary.step.mean_ms > UNEVEN_RATIO * summary.step.median_ms:
        yield (
            f"its steps are uneven, {summary.step.mean_ms:.2f} ms on average, {summary.step.median_ms:.2f} ms in "
            "the middle: something else uses the same cores (dqrm-cpu doctor says how much), or there are more threads "
            "than cores (--train.threads)."
        )
    yield from _between_steps(run, summary)


def _between_steps(run: RunFiles, summary: SpanSummary) -> Iterator[str]:
    """Evaluations and checkpoints, of which only what takes the time can save any."""
    took = {phase: summary.phases[phase].total_ms for phase in OCCASIONS if phase in summary.phases}
    total = sum(took.values()) + summary.step.total_ms
    if sum(took.values()) <= _BETWEEN_SHARE * total:
        return
    mends = []
    if took.get(Phase.EVALUATION, 0.0) > _BETWEEN_SHARE / 2 * total:
        if len(run.of_phase("validation")) > 1:
            mends.append("evaluate less often (--train.evaluate-every)")
        mends.append("evaluate on fewer rows (--data.validation-rows, --data.test-rows)")
    if took.get(Phase.CHECKPOINT, 0.0) > _BETWEEN_SHARE / 2 * total:
        mends.append("save less often (--train.checkpoint-every)")
    yield f"evaluations and checkpoints take {sum(took.values()) / total:.0%} of its time: {', or '.join(mends)}."


def _scale(run: RunFiles, bar: Bar) -> Iterator[str]:
    share = _share(bar, Phase.SCALE)
    if share <= SCALE_SHARE:
        return
    yield f"finding scales takes {share:.0%} of the step: {scale_schedule.advice(run.config.quant)}."


def _waiting(run: RunFiles, bar: Bar) -> Iterator[str]:
    data, exchange = _share(bar, Phase.DATA), _share(bar, *EXCHANGE)
    if data > _DATA_SHARE:
        mend = (
            "prepare generated rows once (dqrm-cpu data generate, dqrm-cpu prepare), or let them fit into memory"
            if run.config.data.source == "synthetic"
            else "put the data set on a faster disk"
        )
        yield f"waiting for data takes {data:.0%} of the step: {mend}."
    if exchange > _EXCHANGE_SHARE and len(run.spans) > 1:
        comm = run.config.comm
        mends = []
        if not comm.integer_width:
            mends.append("--comm.wire int8")
        if comm.mlp_gradients == "fp32":
            mends.append("--comm.mlp-gradients int8 --comm.error-feedback mlp")
        if len({place["host"] for place in run.environment.get("ranks", [])}) == 1:
            # Memory moves bytes faster than they can be rounded: integers were measured to be slower on one host.
            mends = ["fewer ranks with more threads each, since all are on one host"]
        mends.append("a larger --train.batch-size")
        yield f"exchanging gradients takes {exchange:.0%} of the step: try {', or '.join(mends)}."


def _ranks(run: RunFiles) -> Iterator[str]:
    if len(run.spans) < 2:
        return
    for spans in run.spans:
        others = median(working_ms(other.summary) for other in run.spans if other is not spans)
        mine = working_ms(spans.summary)
        if others and mine > _STRAGGLER_RATIO * others:
            place = _place(run, spans.rank)
            yield (
                f"rank {spans.rank}{place} works {longer(mine / others)} the others at each step, who wait "
                "for it: look for other programs on its host, its cores and its memory (dqrm-cpu doctor there)."
            )


def _threads(run: RunFiles) -> Iterator[str]:
    used: dict[str, list[tuple[int, frozenset[int]]]] = {}
    for place in run.environment.get("ranks", []):
        used.setdefault(place["host"], []).append((place["threads"], frozenset(place["affinity"])))
    for host, places in used.items():
        threads, cores = sum(count for count, _ in places), len(frozenset().union(*(cores for _, cores in places)))
        crowded = [(count, len(own)) for count, own in places if count > len(own)]
        fair = max(min(cores // len(places), *(len(own) for _, own in places)), 1) if cores else 0
        if threads > cores:
            mends = [f"set --train.threads {fair}"] if any(count > fair for count, _ in places) else []
            mends += ["start fewer ranks there"] if len(places) > 1 else []
            shared = f"{counted(threads, 'thread')} share {counted(cores, 'core')}"
            yield f"{shared} on {host}: {', or '.join(mends)}."
        elif crowded:
            count, own = crowded[0]
            yield (
                f"a rank on {host} has {counted(count, 'thread')} and may use {own} of its cores: set "
                f"--train.threads {fair}, or "
                "let each rank use more cores (the launcher binds them)."
            )


def _clipping(run: RunFiles) -> Iterator[str]:
    """Learned scales and narrow widths clip on purpose; a scale that is out of date does not."""
    rows, quant = [row for row in run.of_phase("train") if row.lookup_clip_rate], run.config.quant
    if not rows or not scale_schedule.finds_scales(quant):
        return
    rates = [fmean(rates) for rates in zip(*(row.lookup_clip_rate for row in rows), strict=True)]
    worst = max(range(len(rates)), key=rates.__getitem__)
    if rates[worst] <= _CLIP_RATE:
        return
    width = quant.step_width[worst] if len(quant.step_width) > 1 else quant.step_width[0]
    clipped = f"{rates[worst]:.1%} of the values of table C{worst + 1} lie beyond its scale"
    if width < 1:
        yield f"{clipped}, since --quant.step-width is {width:g}: the scale of max|W| needs 1."
    elif scale_schedule.scale_period(quant) > 1:
        tracked = "" if scale_schedule.tracks_absmax(quant) else " with --quant.scale-finder track"
        yield f"{clipped}: shorten --quant.scale-period (1 costs next to nothing{tracked})."


def _overfitting(run: RunFiles) -> Iterator[str]:
    rated, best = [row for row in run.of_phase("validation") if row.metrics], run.best
    if not rated or best is None or best.metrics is None or rated[-1].metrics is None:
        return
    by = run.config.train.best_by
    change = rated[-1].metrics.figure(by) - best.metrics.figure(by)
    if not (-change if by == "auc" else change) > _OVERFIT:
        return
    after = sum(row.step > best.step for row in rated)
    moved = f"{FIGURE_NAMES[by]} {'fell' if change < 0 else 'rose'} by {abs(change):.4f}"
    text = f"validation {moved} after step {best.step:,}: the best checkpoint is kept"
    if run.config.train.early_stop_patience == 0 and after > _PATIENCE:
        text += f"; where it does not recover, --train.early-stop-patience {_PATIENCE} saves the rest of the time"
    yield f"{text}."


def _unfinished(run: RunFiles) -> Iterator[str]:
    if run.result is None:
        ranks = len(run.environment.get("ranks", []))
        started = f", with {ranks} ranks as before" if ranks > 1 else ""
        command = f"dqrm-cpu train --run-dir {shlex.quote(str(run.path))} --resume auto"
        yield f"it has not finished (step {run.last_step:,}); unless it still runs, go on by {command}{started}."


def _share(bar: Bar, *phases: Phase) -> float:
    return sum(bar.phases_ms.get(phase, 0.0) for phase in phases) / bar.step_ms


def _place(run: RunFiles, rank: int) -> str:
    hosts = {place["rank"]: place["host"] for place in run.environment.get("ranks", [])}
    return f" on {hosts[rank]}" if rank in hosts else ""
