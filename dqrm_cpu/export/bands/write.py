"""Writes a model whose tables lie in bands: rows renumbered by band, each band's codes, the vocabulary of what is kept.

A table's codes are put together in memory, as many bytes as the file has of them; its weights are read block by block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dqrm_cpu.config import Config
from dqrm_cpu.export.bands.choice import LEFT_OUT, ChosenBand, Plan, TableOptions, Width
from dqrm_cpu.export.bands.classes import RankedRows
from dqrm_cpu.export.bands.errors import SUBSTITUTES, UNSEEN, Meanings, ModelRows, TableErrors
from dqrm_cpu.export.codes import pack_codes
from dqrm_cpu.export.features import RawFeatures, describe
from dqrm_cpu.export.safetensors_writer import Streamed, file_bytes, whole, write_tensors
from dqrm_cpu.export.write import PackedLayers, file_metadata
from dqrm_cpu.model.size import packed_row_bytes
from dqrm_cpu.quant.formula import SMALLEST_SCALE, largest_code
from dqrm_cpu.serving.bands import bands_of
from dqrm_cpu.serving.description import BANDS, BUCKETS, MODEL, Description, member_tensor
from dqrm_cpu.serving.ids import keys_tensors
from dqrm_cpu.serving.model import BANDED

_SUBSTITUTE_BITS = 8
_ROW_NUMBER_BYTES = 4
"""The bytes that a row of the vocabulary takes beside its key."""


@dataclass(frozen=True)
class MemberRows:
    """One model: its tables, what keeping their rows costs, its layers."""

    tables: Sequence[ModelRows]
    errors: Sequence[TableErrors]
    layers: PackedLayers


class BandedModel:
    """A model, or an ensemble, to be written in bands; `substitute` names what stands for ids that are left out."""

    def __init__(
        self,
        config: Config,
        identity: str,
        features: RawFeatures,
        ranked: Sequence[RankedRows],
        members: Sequence[MemberRows],
        substitute: str,
    ) -> None:
        self._config, self._features, self._ranked, self._members = config, features, ranked, members
        self._substitute = SUBSTITUTES.index(substitute)
        self._metadata = file_metadata(config, BANDS, identity)
        self._layers = [member.layers.tensors() for member in members]
        # What the file says of the run's own metrics would not be true of it.
        self._whole = replace(describe(config, BANDS, replace(features, metrics=None)), members=len(members))

    @property
    def options(self) -> list[TableOptions]:
        """The widths that each class of each table can have."""
        return [TableOptions(ranked, tuple(self._widths(t, ranked))) for t, ranked in enumerate(self._ranked)]

    def size_of(self, plan: Plan) -> int:
        """Returns the bytes of a plan's file, or a few more: as many bands as it has where a class is split."""
        return file_bytes(*self._file(plan, spare=1))

    def write(self, path: Path, plan: Plan) -> int:
        """Writes the file, whole or not at all; returns its bytes."""
        return write_tensors(path, *self._file(plan))

    def rows_by_bits(self, plan: Plan) -> dict[int, int]:
        """Returns how many rows have so many bits, the widest first."""
        found: dict[int, int] = {}
        for t, bands in enumerate(plan.bands):
            for band in bands:
                bits = self.meaning(0, t, band).bits
                found[bits] = found.get(bits, 0) + band.rows
        return dict(sorted(found.items(), reverse=True))

    def meaning(self, member: int, table: int, band: ChosenBand) -> Meanings:
        """Returns what the codes of a band mean."""
        errors = self._members[member].errors[table]
        if band.meaning < len(errors.meanings):
            return errors.meanings[band.meaning]
        largest = np.abs(errors.substitutes[self._substitute]).max()
        scale = np.maximum(largest / np.float32(largest_code(_SUBSTITUTE_BITS)), SMALLEST_SCALE)
        return Meanings(_SUBSTITUTE_BITS, *(np.full(1, part, np.float32) for part in (scale, 0)))

    def _widths(self, t: int, ranked: RankedRows) -> Iterator[tuple[Width, ...]]:
        dim, errors = self._members[0].tables[t].rows.shape[1], [member.errors[t] for member in self._members]
        kept = np.sum([one.kept for one in errors], axis=0)
        left_out = np.sum([one.left_out[self._substitute] for one in errors], axis=0)
        bits = [meanings.bits for meanings in errors[0].meanings]
        has_keys = not ranked.is_pinned
        key_bytes = self._features.ids.key_bits // 8 + _ROW_NUMBER_BYTES if has_keys else 0
        for k in range(ranked.num_classes):
            if k == 0 and has_keys:
                is_trained = SUBSTITUTES[self._substitute] == UNSEEN
                yield (Width(len(bits) - is_trained, 0, float(kept[-1, 0] if is_trained else left_out[0])),)
                continue
            widths = [Width(LEFT_OUT, 0, float(left_out[k]))] if has_keys else []
            for number, its in enumerate(bits):
                row_bytes = key_bytes + len(self._members) * packed_row_bytes(dim, its)
                width = Width(number, row_bytes, float(kept[number, k]))
                if widths and widths[-1].row_bytes == row_bytes:  # rows of a few values
                    widths[-1] = min(widths[-1], width, key=lambda one: one.error)
                else:
                    widths.append(width)
            yield tuple(widths)

    def _file(self, plan: Plan, spare: int = 0) -> tuple[list[Streamed], dict[str, str]]:
        """Returns the tensors and the metadata; with `spare` their sizes alone are true, for so many more bands."""
        tensors = []
        for m, layers in enumerate(self._layers):
            of_member = [*self._tables(m, plan, spare), *layers]
            tensors += [replace(one, name=member_tensor(m + 1, one.name)) for one in of_member]
        description = self._description(plan)
        tensors += self._vocabulary(plan, description)
        return tensors, self._metadata | {"format": BANDED, MODEL: description.to_json()}

    def _description(self, plan: Plan) -> Description:
        rows = [sum(band.rows for band in bands) for bands in plan.bands]
        columns = zip(self._whole.categories, rows, strict=True)
        return replace(self._whole, categories=tuple(replace(column, rows=count) for column, count in columns))

    def _tables(self, m: int, plan: Plan, spare: int) -> Iterator[Streamed]:
        """Yields the codes of each table, then what the bands of all of them are, `spare` more than there are."""
        about = []
        for t, (table, bands) in enumerate(zip(self._members[m].tables, plan.bands, strict=True)):
            meanings = [self.meaning(m, t, band) for band in bands]
            of_bands = list(zip(bands, meanings, strict=True))
            num_bytes = sum(band.rows * packed_row_bytes(table.rows.shape[1], its.bits) for band, its in of_bands)
            yield Streamed(f"C{t + 1}.codes", "uint8", (num_bytes,), partial(self._codes, m, t, bands))
            about += [
                (band.rows, its.bits, its.scale[band.of_class], its.offset[band.of_class]) for band, its in of_bands
            ]
        about += about[:1] * spare
        rows, bits, scale, offset = zip(*about, strict=True)
        yield whole("tables.bands", np.array([rows, bits], np.int32).T)
        yield whole("tables.step", np.array(scale, np.float32))
        yield whole("tables.offset", np.array(offset, np.float32))

    def _codes(self, m: int, t: int, bands: Sequence[ChosenBand]) -> Iterator[NDArray[np.uint8]]:
        """Yields the codes of a table, its bands one behind another: uint8[bytes]."""
        table, ranked = self._members[m].tables[t], self._ranked[t]
        meanings, (count, dim) = [self.meaning(m, t, band) for band in bands], table.rows.shape
        pairs = np.array([(band.rows, its.bits) for band, its in zip(bands, meanings, strict=True)], np.int32)
        lying = bands_of(pairs, dim)
        kept = _kept_rows(ranked, bands)
        places = np.full(count, -1, np.int32)
        places[kept] = np.arange(kept.size, dtype=np.int32)
        ends, first = [band.end for band in lying], 0
        into = [np.empty((its.rows, packed_row_bytes(dim, its.bits)), np.uint8) for its in lying]
        for values in table.blocks():
            if first == 0 and not ranked.is_pinned:
                values = values.copy()
                values[0] = self._members[m].errors[t].substitutes[self._substitute]
            at = places[first : first + len(values)]
            here = np.flatnonzero(at >= 0)
            of_rows = np.searchsorted(ends, at[here], side="right")
            for number in np.unique(of_rows).tolist():
                chosen, its, meaning = here[of_rows == number], lying[number], meanings[number]
                classes = np.full(chosen.size, bands[number].of_class)
                codes = meaning.codes(values[chosen], classes)
                into[number][at[chosen] - its.first] = pack_codes(codes, its.bits)
            first += len(values)
        yield np.concatenate([part.reshape(-1) for part in into])

    def _vocabulary(self, plan: Plan, description: Description) -> Iterator[Streamed]:
        names = {int(table.removeprefix("C")) - 1: pair for table, pair in keys_tensors(description).items()}
        for t, (keys_name, rows_name) in names.items():
            bands, keys = plan.bands[t], self._features.keys[t]
            count = sum(band.rows for band in bands) - 1
            yield Streamed(keys_name, str(keys.dtype), (count,), partial(self._keys, t, bands, False))
            yield Streamed(rows_name, "int32", (count,), partial(self._keys, t, bands, True))

    def _keys(self, t: int, bands: Sequence[ChosenBand], wants_rows: bool) -> Iterator[NDArray[np.generic]]:
        """Yields the keys that are kept, rising, or the row of each."""
        keys = self._features.keys[t][_kept_rows(self._ranked[t], bands)[1:] - 1]
        yield (np.argsort(keys, kind="stable") + 1).astype(np.int32) if wants_rows else np.sort(keys)


def _kept_rows(ranked: RankedRows, bands: Sequence[ChosenBand]) -> NDArray[np.int32]:
    """Returns the rows of a table that a file keeps, in its order."""
    return np.concatenate([ranked.order[band.first : band.first + band.rows] for band in bands])


def is_pinned(description: Description, table: int) -> bool:
    """Tells whether the rows of a table follow from a rule, so that each must stay where it is."""
    return bool(description.ids.hash_rows) or description.categories[table].kind == BUCKETS
