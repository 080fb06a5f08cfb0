"""Files that lie and have valid checksums: JSON that was changed in its structure, headers whose numbers are others."""

import copy
import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np

_HUGE = 10**30
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, _HUGE, -_HUGE),
    *(0.5, -0.0, float("nan"), float("inf"), 1e308, "", "x", "../x", "/dev/zero", "/dev/stdin", "\x00", "\ud800", "1"),
    *([], {}, [[]], [None], [1, 2], {"": 0}, {"format": 1}, "x" * 100_000, [0] * 100_000, "9" * 5000),
)
"""What a field may hold instead: every type, the edges of every width, names that lead elsewhere."""

DEEP = "[" * 100_000
LONG = "9" * 6_000


def mutated(document: Any, random_: random.Random) -> Any:
    """The document with one to three changes at places anywhere within it."""
    document = copy.deepcopy(document)
    for _ in range(random_.choice((1, 1, 2, 3))):
        place = random_.choice(list(_places(document)))
        document = _changed(document, place, random_)
    return document


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _changed(document: Any, place: tuple[Any, ...], random_: random.Random) -> Any:
    if not place:
        return random_.choice(NASTY) if random_.random() < 0.2 else document
    owner = document
    for key in place[:-1]:
        owner = owner[key]
    key, how = place[-1], random_.randrange(6)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    elif how == 1:
        owner[random_.choice(("new", "", "__class__", "crc32"))] = random_.choice(NASTY)
    elif how == 2 and isinstance(owner, list):
        random_.shuffle(owner)
    elif how == 3 and isinstance(owner[key], int):
        owner[key] += random_.choice((-1, 1, 8, 1 << 12, 1 << 40))
    else:
        owner[key] = random_.choice(NASTY)
    return document


def as_text(document: Any, random_: random.Random) -> bytes:
    """JSON; now and then with a value in it that a parser chokes on."""
    text = json.dumps(document)
    if random_.random() < 0.1:
        at = random_.randrange(len(text))
        text = (
            text[:at] + random_.choice((DEEP, LONG, "\x00", "NaN", "-Infinity", '"\\ud800"', "{" * 50_000)) + text[at:]
        )
    return text.encode("utf-8", "surrogatepass")


def checked_json(document: Any) -> int:
    """The checksum that manifests and states have."""
    return zlib.crc32(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def forge_manifest(path: Path, random_: random.Random) -> None:
    """A manifest of another structure, with its checksum."""
    document = json.loads(path.read_bytes())
    document.pop("crc32")
    document = mutated(document, random_)
    if isinstance(document, dict) and random_.random() < 0.95:
        document = {"crc32": checked_json(document), **document}
    path.write_bytes(as_text(document, random_))


def forge_state(path: Path, random_: random.Random) -> None:
    """A state.json of another structure, with its checksum."""
    document = json.loads(path.read_bytes())
    body = mutated(document["body"], random_)
    path.write_bytes(as_text({"crc32": checked_json(body), "body": body}, random_))


def forge_json(path: Path, random_: random.Random) -> None:
    """A JSON file without a checksum of its own; one that is kept within it may no longer fit."""
    document = mutated(json.loads(path.read_bytes()), random_)
    path.write_bytes(as_text(document, random_))


def forge_safetensors(path: Path, random_: random.Random) -> None:
    """A header of another structure or length; of a packed file with the checksum that fits it."""
    from dqrm_cpu.base.tensor_header import HEADER_CHECKSUM, NO_CHECKSUM, header_checksum, with_header_checksum

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if random_.random() < 0.2:
        length = random_.choice((0, 1, 8, length + 8, len(content), 1 << 32, (1 << 63) - 1, (1 << 64) - 1))
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        return
    header = mutated(header, random_)
    is_packed = isinstance(header, dict) and isinstance(header.get("__metadata__"), dict)
    if is_packed and HEADER_CHECKSUM in header["__metadata__"]:
        header["__metadata__"][HEADER_CHECKSUM] = NO_CHECKSUM
    text = as_text(header, random_)
    text += b" " * (-len(text) % 8)
    text = with_header_checksum(text, NO_CHECKSUM, header_checksum(text))
    if random_.random() < 0.2:
        data = data[: random_.randrange(len(data))] if random_.random() < 0.5 else data + bytes(64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def adopt_shard(folder: Path, name: str) -> None:
    """Lets state.json of a checkpoint vouch for a shard that was forged."""
    path, content = folder / "state.json", (folder / name).read_bytes()
    body = json.loads(path.read_bytes())["body"]
    body["shards"] = [
        [name, len(content), zlib.crc32(content), pieces] if file == name else [file, size, crc32, pieces]
        for file, size, crc32, pieces in body["shards"]
    ]
    path.write_text(json.dumps({"crc32": checked_json(body), "body": body}))


def forge_shard(path: Path, random_: random.Random) -> None:
    """A shard whose header or sections lie, with all checksums made anew, and a manifest that vouches for it."""
    from dqrm_cpu.data.store.layout import COLUMN, HEADER, SECTION

    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    fixed = content[: HEADER.itemsize].view(HEADER)
    tables, blocks = int(fixed["num_tables"][0]), int(fixed["num_blocks"][0])
    columns_at = HEADER.itemsize
    sections_at = columns_at + tables * COLUMN.itemsize
    sections_end = sections_at + blocks * 3 * SECTION.itemsize
    columns = content[columns_at:sections_at].view(COLUMN)
    sections = content[sections_at:sections_end].view(SECTION)
    where = random_.randrange(4)
    if where == 0:
        section = sections[random_.randrange(sections.size)]
        begin, end = int(section["offset"]), int(section["offset"] + section["bytes"])
        for _ in range(random_.choice((1, 4, 64))):
            at = random_.randrange(begin, max(end, begin + 1))
            content[at : at + 4] = np.frombuffer(random_.choice(_PAYLOADS), np.uint8)[: content[at : at + 4].size]
        section["crc32"] = zlib.crc32(content[begin:end].tobytes())
    else:
        target = (fixed, columns, sections)[where - 1]
        field = random_.choice([name for name in target.dtype.names or () if name not in ("magic", "header_crc32")])
        index = random_.randrange(target.size)
        old = int(target[field][index])
        new = random_.choice((0, 1, old - 1, old + 1, old * 2, 1 << 16, 1 << 30, (1 << 31) - 1, 1 << 62, (1 << 64) - 1))
        width = target.dtype[field].itemsize
        target[field][index] = np.frombuffer((new % (1 << 8 * width)).to_bytes(width, "little"), target.dtype[field])[0]
        _check_sections(content, sections)
    if random_.random() < 0.1:
        content = content[: random_.randrange(sections_end, content.size)]
        content[: HEADER.itemsize].view(HEADER)["file_bytes"] = content.size
    _seal(path, content, min(sections_end, content.size))


_PAYLOADS = tuple(
    np.asarray([value], kind).tobytes()[:4].ljust(4, b"\xff")
    for value, kind in (
        (np.nan, np.float32),
        (np.inf, np.float32),
        (1e38, np.float32),
        (-1, np.int32),
        (2**31 - 1, np.int32),
        (7, np.int32),
        (65535, np.int32),
    )
)


def _check_sections(content: np.ndarray, sections: np.ndarray) -> None:
    for section in sections:
        begin, size = int(section["offset"]), int(section["bytes"])
        if begin + size <= content.size:
            section["crc32"] = zlib.crc32(content[begin : begin + size].tobytes())


def _seal(path: Path, content: np.ndarray, header_bytes: int) -> None:
    from dqrm_cpu.data.store.layout import HEADER

    fixed = content[: HEADER.itemsize].view(HEADER)
    fixed["header_crc32"] = 0
    num_bytes = int(fixed["header_bytes"][0])
    fixed["header_crc32"] = zlib.crc32(content[: num_bytes if num_bytes <= content.size else header_bytes].tobytes())
    path.write_bytes(content.tobytes())
    manifest = path.parent / "manifest.json"
    document = json.loads(manifest.read_bytes())
    document.pop("crc32")
    for files in document["parts"].values():
        for file in files:
            if file["name"] == path.name:
                rows, clicks = int(fixed["rows"][0]), int(fixed["clicks"][0])
                file.update(rows=rows, bytes=int(content.size), crc32=int(fixed["header_crc32"][0]), clicks=clicks)
    manifest.write_text(json.dumps({"crc32": checked_json(document), **document}))


def forge_page(path: Path, random_: random.Random) -> None:
    """The page of a vocabulary; without its checksum, as those of earlier versions are."""
    document = json.loads(path.read_text())
    del document["crc32"]
    path.write_text(json.dumps(document))
    forge_json(path, random_)


def forge_npy(path: Path, random_: random.Random) -> None:
    """A vocabulary column whose NumPy header lies."""
    content = path.read_bytes()
    length = int.from_bytes(content[8:10], "little")
    shapes = (f"({1 << 40},)", "(-1,)", "(1, 2)", "()", f"({LONG},)", "(1 << 3,)", "[1]", "(((((1,)))))", "None")
    kinds = ("<u8", "<u4", "|O", "<f4", "|V8", "<U1000000", "xx", "<u3")
    text = f"{{'descr': '{random_.choice(kinds)}', 'fortran_order': {random_.choice((True, False, 3))}, "
    text += f"'shape': {random_.choice(shapes)}, {random_.choice(('', '0: 1', '(' * 900))}}}"
    header = text.encode().ljust(length - 1)[: max(length - 1, 1)] + b"\n"
    if random_.random() < 0.2:
        length = random_.choice((0, 1, 65535))
    start = bytes([0x93]) + b"NUMPY" + bytes([random_.choice((1, 1, 1, 2, 3, 9)), 0]) + length.to_bytes(2, "little")
    path.write_bytes(start + header + content[10 + len(header) :])


def forge_toml(path: Path, random_: random.Random) -> None:
    """Settings with values and shapes that no settings have."""
    lines = path.read_text().splitlines()
    at = random_.randrange(len(lines))
    name = lines[at].split("=")[0].strip() or "x"
    values = (
        "1e999",
        LONG,
        "nan",
        "[[[[]]]]",
        "'x'",
        "-1",
        "{a = {b = 1}}",
        "1979-05-27",
        '"\\u0000"',
        "true",
        "[",
        "",
    )
    choices = (
        f"{name} = {random_.choice(values)}",
        f"{name} = {'[' * random_.choice((100, 100_000))}",
        f"{'a.' * random_.choice((10, 100_000))}b = 1",
        f"[{'a.' * random_.choice((10, 50_000))}b]",
        f"{name} = {random_.choice((0, -1, 1 << 31, 1 << 63, 1 << 64, 10**25))}",
        "[train]",
        "\x00",
        "x" * 1_000_000,
        f"{name} = '''",
    )
    lines[at : at + random_.randrange(2)] = [random_.choice(choices)]
    path.write_bytes("\n".join(lines).encode() + random_.choice((b"", b"\xff\xfe", b"\r")))


def forge_lines(path: Path, random_: random.Random) -> None:
    """Rows of a log that are none."""
    lines = path.read_bytes().split(b"\n")
    at = random_.randrange(len(lines))
    row = lines[at] or b"{}"
    choices = (
        as_text(mutated(json.loads(row), random_), random_),
        DEEP.encode(),
        LONG.encode(),
        b"\x00" * 4096,
        b"\xff" * 10,
        b"null",
        b"[]",
        b'{"step": 1e999}',
        row + row,
        b"x" * 5_000_000,
    )
    lines[at] = random_.choice(choices)
    path.write_bytes(b"\n".join(lines))


def poison_packed(path: Path, random_: random.Random) -> str:
    """Puts NaN or an infinity into a float tensor of a packed file and makes its checksums anew; the tensor's name."""
    from dqrm_cpu.base.tensor_header import (
        CHECKSUM_STRETCH,
        CHECKSUMS,
        HEADER_CHECKSUM,
        NO_CHECKSUM,
        header_checksum,
        with_header_checksum,
    )

    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    floats = [name for name, entry in header.items() if entry.get("dtype") == "F32"]
    name: str = random_.choice(floats)
    begin, end = header[name]["data_offsets"]
    at = begin + 4 * random_.randrange((end - begin) // 4)
    data[at : at + 4] = np.float32(random_.choice((np.nan, np.inf, -np.inf))).tobytes()
    about = header["__metadata__"]
    stretch = int(about[CHECKSUM_STRETCH])
    pieces = [data[first : first + stretch] for first in range(0, len(data), stretch)]
    about[CHECKSUMS] = "".join(f"{zlib.crc32(piece):08x}" for piece in pieces)
    about[HEADER_CHECKSUM] = NO_CHECKSUM
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    text = with_header_checksum(text, NO_CHECKSUM, header_checksum(text))
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return name
