"""What a profile leaves: profile.json, trace.json, report.html."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrm_cpu.config import Config
from dqrm_cpu.config.schema import flatten
from dqrm_cpu.profiler.bandwidth import Bandwidth
from dqrm_cpu.profiler.folder import unwritable
from dqrm_cpu.profiler.result import Profile, VariantProfile
from dqrm_cpu.profiler.run import ProfilePlan
from dqrm_cpu.profiler.trace import chrome_trace

FORMAT = 2


@dataclass(frozen=True)
class Circumstances:
    """Under what a profile was taken."""

    taken_at: str  # ISO 8601, UTC
    config: Config
    plan: ProfilePlan
    environment: Mapping[str, Any]
    bandwidths: Sequence[Bandwidth]


def profile_document(profile: Profile, around: Circumstances) -> dict[str, Any]:
    """Plain values; milliseconds and bytes are per step."""
    return {
        "format": FORMAT,
        "taken_at": around.taken_at,
        "warmup_steps": around.plan.warmup_steps,
        "measured_steps": around.plan.turn_steps * around.plan.rounds,
        "rounds": around.plan.rounds,
        "environment": around.environment,
        "settings": _plain(flatten(around.config)),
        "reading_floor_bytes_per_second": profile.floors.reading,
        "variants": {found.variant.name: _variant(found, around) for found in profile.variants},
    }


def write_files(folder: Path, profile: Profile, around: Circumstances) -> list[Path]:
    """profile.json and trace.json; the page is the report's."""
    hosts = [place["host"] for place in around.environment["ranks"]]
    documents = {
        "profile.json": json.dumps(profile_document(profile, around), indent=1),
        "trace.json": json.dumps(chrome_trace(profile.timelines, hosts)),
    }
    try:
        for name, text in documents.items():
            (folder / name).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritable(folder, error) from error
    return [folder / name for name in documents]


def _variant(found: VariantProfile, around: Circumstances) -> dict[str, Any]:
    own, asked = flatten(found.variant.config), flatten(around.config)
    return {
        "about": found.variant.about,
        "changed_settings": _plain({key: value for key, value in own.items() if value != asked[key]}),
        "ranks": [
            {**rank.summary.as_dict(), "covered": rank.summary.covered, "bytes_sent": rank.sent._asdict()}
            for rank in found.ranks
        ],
        "bandwidth": [
            {
                "phase": one.phase.key,
                "bytes": one.bytes_per_step,
                "bytes_per_second": one.bytes_per_second,
                "floor_bytes_per_second": one.floor_bytes_per_second,
            }
            for one in around.bandwidths
            if one.variant == found.variant.name
        ],
    }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
