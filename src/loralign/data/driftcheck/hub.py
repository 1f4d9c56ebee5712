"""Fetching a public set from where the literature's copies of it are on the hub."""

from __future__ import annotations

from collections.abc import Collection

import datasets

from loralign.data.driftcheck.formats import Format
from loralign.data.tables import RawTable
from loralign.errors import DataError


def read_public_set(form: Format, wanted: Collection[str]) -> RawTable:
    """Read a public set by its name alone. No code that comes with it is run.

    Args:
        form: a form that has a place on the hub.
        wanted: the columns to read.

    Raises:
        DataError: the set cannot be fetched, is only given to those who ask, or has no rows.
    """
    place = form.hub
    if place is None:
        raise DataError("this set is not on the hub", place=form.name, fix=f"write {form.name}=FILE")
    try:
        loaded = datasets.load_dataset(place.path, place.config, data_dir=place.data_dir, split=place.split)
    except Exception as error:
        # No connection, no access, no such configuration: each library below has errors of its own for them.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{place.path} cannot be read from the hub: {reason}",
            place=form.name,
            fix=f"check the connection and your access to the set, or write {form.name}=FILE",
        ) from error
    kept = loaded.select_columns([column for column in loaded.column_names if column in wanted])
    rows = kept.to_list()
    if not rows:
        raise DataError(f"{place.path} holds no rows", place=form.name, fix=f"write {form.name}=FILE")
    return RawTable(place.path, tuple(loaded.column_names), rows, range(1, len(rows) + 1))
