"""Tables as Parquet files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from loralign.errors import DataError
from loralign.files import atomic_path


def write_columns(path: str | os.PathLike[str], columns: Mapping[str, Sequence[str | float]]) -> None:
    """Write columns of text (as UTF-8) or numbers (as float64), whole or not at all.

    Args:
        path: the file.
        columns: by name, all of one length; text where the first value is text.

    Raises:
        DataError: the columns differ in length.
        OutputError: the file system refused the write.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"the columns differ in length: {told}", place=str(path), fix="give a value for every row")
    table = pa.table({name: _array(values) for name, values in columns.items()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _array(values: Sequence[str | float]) -> pa.Array:
    # Long answers to many prompts are more than the 2 GiB that Arrow's plain strings can hold.
    kind = pa.large_string() if len(values) and isinstance(values[0], str) else pa.float64()
    return pa.array(values, type=kind)
