"""An open model as compiled code takes it, where numba is there to compile it."""

import importlib.util
from itertools import accumulate

from dqrm_cpu.base.kernel_cache import choose_cache_folder
from dqrm_cpu.kernels.packed_arrays import BandArrays, IntegerInputs, LayerArrays, NetworkArrays, TableArrays
from dqrm_cpu.kernels.packed_scoring import CompiledNetwork
from dqrm_cpu.serving.bands import banded_tables
from dqrm_cpu.serving.description import BAG, BANDS, CROSS, DENSE, DOT, FLOAT_BITS, Description
from dqrm_cpu.serving.layers import AffineLayer, IntegerLayer
from dqrm_cpu.serving.mapped_file import MappedFile
from dqrm_cpu.serving.network import Layer, PackedNetwork, dense_codes, sparse_table
from dqrm_cpu.serving.stored import finite


def can_compile() -> bool:
    """Tells whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def compile_network(file: MappedFile, model: Description, network: PackedNetwork, threads: int) -> CompiledNetwork:
    """Returns the compiled forward of an open model; ImportError without a numba that works here."""
    choose_cache_folder()
    projections = network.tables.projections
    tables = range(len(model.categories))
    return CompiledNetwork(
        NetworkArrays(
            tables=_tables(file, model),
            projections=[_layer(projections[t]) if t in projections else None for t in tables],
            bottom=[_layer(layer) for layer in network.bottom],
            cross=[_layer(layer) for layer in network.cross],
            top=[_layer(layer) for layer in network.top],
            dim=model.dim,
            is_dot=model.interaction == DOT,
            is_mean=model.mean_pooling,
        ),
        threads,
    )


def _banded_tables(file: MappedFile, model: Description) -> list[TableArrays]:
    tables, first_slot = [], 0
    for table, column in zip(banded_tables(file, model), model.categories, strict=True):
        bands = [
            BandArrays(codes, band.first, band.bits, table.scale[k : k + 1], table.offset[k : k + 1])
            for k, (band, codes) in enumerate(zip(table.bands, table.codes, strict=True))
        ]
        tables.append(
            TableArrays(
                codes=table.codes[0],
                num_rows=column.rows,
                dim=column.dim,
                bits=table.bands[0].bits,
                scale=table.scale,
                offset=None,
                first_slot=first_slot,
                num_slots=column.limit or 1,
                is_bag=column.kind == BAG,
                bands=bands,
            )
        )
        first_slot += column.limit or 1
    return tables


def _tables(file: MappedFile, model: Description) -> list[TableArrays]:
    if model.layout == BANDS:
        return _banded_tables(file, model)
    count = len(model.categories)
    scale = finite(file, "tables.step", count)
    offset = finite(file, "tables.offset", count) if "tables.offset" in file.entries else None
    sizes = [column.limit or 1 for column in model.categories]
    first_slots = accumulate(sizes, initial=0)
    tables = []
    for t, (column, first_slot) in enumerate(zip(model.categories, first_slots, strict=False)):
        sparse = None if model.layout == DENSE else sparse_table(file, model, t)
        tables.append(
            TableArrays(
                codes=dense_codes(file, model, t) if sparse is None else sparse.codes,
                num_rows=column.rows,
                dim=column.dim,
                bits=model.table_bits,
                scale=scale[t : t + 1],
                offset=None if offset is None else offset[t : t + 1],
                first_slot=first_slot,
                num_slots=sizes[t],
                is_bag=column.kind == BAG,
                bitmap=None if sparse is None else sparse.bitmap,
                rank=None if sparse is None else sparse.counts,
            )
        )
    return tables


def _layer(of_network: Layer) -> LayerArrays:
    layer, integers = of_network, None
    if isinstance(layer, IntegerLayer):
        integers = IntegerInputs(layer.is_unsigned, layer.first_inputs)
        layer = layer.layer
    assert isinstance(layer, AffineLayer)
    about, stored = layer.description, layer.stored
    has_codes = stored.scale is not None and stored.offset is None
    return LayerArrays(
        values=stored.values if has_codes else stored.floats(),
        bits=about.bits if has_codes else FLOAT_BITS,
        scale=stored.scale if has_codes else None,
        bias=layer.bias,
        rectify=about.relu,
        grid=layer.grid,
        ends_cross=about.part == CROSS and about.has_bias,
        integers=integers,
    )
