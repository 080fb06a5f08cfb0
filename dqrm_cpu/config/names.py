"""What a mistaken key was probably meant to be."""

import difflib
from collections.abc import Iterable

from dqrm_cpu.config.schema import ENTRIES, SECTIONS
from dqrm_cpu.config.setting import Entry


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The most similar known word; None when nothing is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def key_mistake(key: str) -> str:
    """What is wrong with a TOML key that is no setting, and what to write."""
    if key in SECTIONS:
        return f"is a section, not a key; write [{key}] above its keys"
    section = key.rpartition(".")[0]
    meant = misplaced_entry(key)
    if meant is not None:
        place = f"in [{meant.section}]" if meant.section else "at top level, above the first [section]"
        return f"misplaced key; {meant.name} belongs {place}"
    if section in SECTIONS:
        near = nearest(key, (known for known in ENTRIES if known.startswith(f"{section}.")))
        if near is None:
            names = ", ".join(e.name for e in ENTRIES.values() if e.section == section)
            return f"unknown key; [{section}] has {names}"
    else:
        near = nearest(key, (*ENTRIES, *SECTIONS))
    if near is None:
        return f"unknown key; sections are {', '.join(SECTIONS)}"
    if near in SECTIONS:
        return f"unknown section; nearest is [{near}]"
    return f"unknown key; nearest is {near} ({ENTRIES[near].describe()})"


def option_mistake(option: str, others: Iterable[str] = ()) -> str:
    """What is wrong with an option that does not exist; `others` are options that are no settings."""
    key = option.removeprefix("--").replace("-", "_")
    meant = misplaced_entry(key)
    if meant is None:
        by_option = {entry.option: entry for entry in ENTRIES.values()}
        near = nearest(option, (*by_option, *others))
        if near is None:
            return "unknown option; --help lists what there is"
        if near not in by_option:
            return f"unknown option; nearest is {near}"
        meant = by_option[near]
    return f"unknown option; nearest is {meant.option} ({meant.describe()})"


def misplaced_entry(key: str) -> Entry | None:
    """The setting of exactly this name in another section."""
    name = key.rpartition(".")[2]
    return next((entry for entry in ENTRIES.values() if entry.name == name and entry.key != key), None)
