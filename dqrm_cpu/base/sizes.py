"""Numbers of bytes as people read them."""

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def sizes_apart(larger: int, smaller: int) -> tuple[str, str]:
    """Both in one unit, small enough that two different numbers of bytes never read the same."""
    for unit, name in _UNITS:
        if larger < unit:
            continue
        for decimals in (1, 2):
            texts = tuple(f"{size / unit:,.{decimals}f} {name}" for size in (larger, smaller))
            if larger == smaller or texts[0] != texts[1]:
                return texts[0], texts[1]
    return f"{larger:,} bytes", f"{smaller:,} bytes"
