"""Coverage-guided fuzzing of whatever reads files: `fuzz.py TARGET [SECONDS]`, by atheris (pip install atheris).

    python tests/faults/fuzz.py shard 600
    python tests/faults/fuzz.py --list

A target may raise DqrmError, OSError or MemoryError and nothing else; the bytes that made it raise something else are
left in the folder where it was started. Every target begins with whole files and keeps their checksums valid, so that
the fuzzer gets behind them. The process leaves no other trace.
"""

import contextlib
import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

_HERE = Path(__file__).parent
_TESTS = _HERE.parent
sys.path[:0] = [str(_HERE), str(_TESTS.parent), str(_TESTS / "data" / "prepare"), str(_TESTS)]

Target = Callable[[bytes], None]


class Fuzzed:
    """A target: `seeds` are the first inputs, `try_one` reads bytes as a file of that kind."""

    def __init__(self, seeds: list[bytes], try_one: Target) -> None:
        self.seeds, self._try_one = seeds, try_one

    def __call__(self, data: bytes) -> None:
        from dqrm_cpu.errors import DqrmError

        with contextlib.suppress(DqrmError, OSError, MemoryError):
            self._try_one(data)


def _data_set(folder: Path) -> Path:
    """A small data set of three columns, 40 rows."""
    import numpy as np

    from dqrm_cpu.data.store.manifest import ColumnStatistics, Manifest, write_manifest
    from dqrm_cpu.data.store.schema import Schema
    from dqrm_cpu.data.store.writer import write_shard

    schema = Schema(("d1", "d2"), ("c1", "c2", "c3"))
    random = np.random.default_rng(1)
    parts = {}
    for part, rows in (("train", 24), ("validation", 8), ("test", 8)):
        ids = random.integers(0, 300, (3, rows)).astype(np.int32)
        label, dense = random.integers(0, 2, rows).astype(np.uint8), random.random((rows, 2)).astype(np.float32)
        parts[part] = (write_shard(folder, f"{part}-00000.shard", schema, label, dense, ids),)
    columns = tuple(ColumnStatistics(name) for name in (*schema.dense, *schema.categorical))
    write_manifest(folder, Manifest(1, schema, (300, 300, 300), parts, columns, (), {}, "fuzz"))
    return folder


def shard(folder: Path) -> Fuzzed:
    """A shard of a data set; its header's checksum and its entry in the manifest are made to fit."""
    import numpy as np

    import forge
    import readers

    path = _data_set(folder) / "train-00000.shard"
    whole, manifest = path.read_bytes(), (folder / "manifest.json").read_bytes()

    def try_one(data: bytes) -> None:
        if len(data) < 128:
            return
        (folder / "manifest.json").write_bytes(manifest)
        forge._seal(path, np.frombuffer(data, np.uint8).copy(), len(data))
        readers.usable_rows(folder)

    return Fuzzed([whole], try_one)


def manifest(folder: Path) -> Fuzzed:
    """manifest.json with the checksum that fits."""
    import forge
    import readers

    path = _data_set(folder) / "manifest.json"
    document = json.loads(path.read_bytes())
    document.pop("crc32")

    def try_one(data: bytes) -> None:
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            body = json.loads(data)
            data = json.dumps({"crc32": forge.checked_json(body), **body}).encode()
        path.write_bytes(data)
        readers.usable_rows(folder)

    return Fuzzed([json.dumps(document).encode()], try_one)


def checkpoint(folder: Path) -> Fuzzed:
    """The body of state.json, and a shard behind it: the first four bytes say how long the body is."""
    import torch

    import forge
    from dqrm_cpu.train.checkpoint import CheckpointStore
    from dqrm_cpu.train.checkpoint_files import load_checkpoint

    tensors = {"tables": torch.ones(6, 2), "mlps": torch.zeros(5)}
    path = CheckpointStore(folder, 1).save(3, tensors, {"step": 3}, best=True)
    body = json.loads((path / "state.json").read_bytes())["body"]
    (shard_path,) = path.glob("*.safetensors")
    text = json.dumps(body).encode()

    def try_one(data: bytes) -> None:
        length = int.from_bytes(data[:4], "little")
        text, content = data[4 : 4 + length], data[4 + length :]
        shard_path.write_bytes(content)
        with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
            body = json.loads(text)
            body["shards"] = [
                [name, len(content), zlib.crc32(content), pieces] for name, _, _, pieces in body["shards"]
            ]
            text = json.dumps({"crc32": forge.checked_json(body), "body": body}).encode()
        (path / "state.json").write_bytes(text)
        load_checkpoint(path, {name: torch.empty_like(tensor) for name, tensor in tensors.items()})

    return Fuzzed([struct.pack("<I", len(text)) + text + shard_path.read_bytes()], try_one)


def packed(folder: Path) -> Fuzzed:
    """A packed model; the checksum of its header is made to fit."""
    import torch

    from dqrm_cpu.base.tensor_header import NO_CHECKSUM, header_checksum, with_header_checksum
    from dqrm_cpu.export.model_files import pack_model
    from dqrm_cpu.export.read import load_packed
    from dqrm_cpu.model.dlrm import Dlrm
    from dqrm_cpu.train.session import load_kernels, open_scales
    from tiny import tiny_config

    config = tiny_config()
    model = Dlrm(config, load_kernels(config, torch.device("cpu")), torch.device("cpu"))
    model.initialize_(1)
    pack_model(folder, config, model, open_scales(config.quant, model).for_evaluation())
    seeds = [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]
    path = folder / "fuzzed.safetensors"

    def try_one(data: bytes) -> None:
        length = min(int.from_bytes(data[:8], "little"), len(data))
        text, rest = data[8 : 8 + length], data[8 + length :]
        with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError, AttributeError):
            found = json.loads(text)["__metadata__"]["header_checksum"]
            text = with_header_checksum(text, found, NO_CHECKSUM)
            text = with_header_checksum(text, NO_CHECKSUM, header_checksum(text))
        path.write_bytes(data[:8] + text + rest)
        load_packed(path, model, config.quant)

    return Fuzzed(seeds, try_one)


def toml(folder: Path) -> Fuzzed:
    """A configuration."""
    from dqrm_cpu.config.load import load_config
    from tiny import tiny_config

    path = folder / "config.toml"

    def try_one(data: bytes) -> None:
        path.write_bytes(data)
        load_config(None, path, {})

    return Fuzzed([tiny_config().to_toml().encode()], try_one)


def raw(folder: Path) -> Fuzzed:
    """Lines for the parser of raw logs, compared with regular expressions."""
    from nasty_rows import nasty_case, prepare_bytes

    return Fuzzed([b"\n".join(nasty_case(seed).good) for seed in range(5)], prepare_bytes)


def schema(folder: Path) -> Fuzzed:
    """The TOML that describes raw logs of another form."""
    from nasty_rows import schema_bytes

    text = 'delimiter = ","\nheader = true\n[[fields]]\nname = "click"\nrole = "label"\n'
    return Fuzzed([text.encode()], schema_bytes)


TARGETS = {found.__name__: found for found in (raw, shard, manifest, checkpoint, packed, toml, schema)}


@contextlib.contextmanager
def opened(name: str) -> Iterator[Fuzzed]:
    """A target in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as folder:
        yield TARGETS[name](Path(folder))


def _compiled_modules() -> Iterator[str]:
    """Modules that numba compiles, which cannot count branches."""
    for path in (_TESTS.parent / "dqrm_cpu").rglob("*.py"):
        text = path.read_text()
        if "numba" in text or ".compiled import" in text:
            yield ".".join(path.relative_to(_TESTS.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in (_TESTS.parent / "kernels").rglob("*.py"):
        name = ".".join(path.relative_to(_TESTS.parent).with_suffix("").parts)
        yield f"dqrm_cpu.{name.removesuffix('.__init__')}"


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in TARGETS:
        sys.exit(f"targets: {', '.join(TARGETS)}")
    try:
        import atheris
    except ImportError:
        sys.exit("the fuzzer is missing; pip install atheris")
    name, seconds = arguments[0], arguments[1] if len(arguments) > 1 else "60"
    with (
        atheris.instrument_imports(include=["dqrm_cpu"], exclude=list(_compiled_modules())),
        opened(name) as target,
        tempfile.TemporaryDirectory(prefix="corpus-") as corpus,
    ):
        for number, content in enumerate(target.seeds):
            target(content)  # compiles kernels, which is no hanging input
            (Path(corpus) / str(number)).write_bytes(content)
        options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=8000", "-max_len=200000"]
        atheris.Setup([sys.argv[0], *options, corpus], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
