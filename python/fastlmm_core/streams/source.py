"""Files, tables, Arrow streams and factories as pieces of a table.

Nothing here imports an engine but pyarrow, and that only where it is asked for.
"""

from __future__ import annotations

import glob
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import LMMError
from ..support.arguments import checked
from ..tables.columns import Table
from ..tables.storage import ARROW_TEXT

__all__ = ["AHEAD", "PIECES", "Scan", "ahead", "scan"]

BATCH = 1 << 17
"""Rows that are decoded at a time."""

AHEAD = 2
"""Pieces that are decoded while another is summed."""

PIECES = 4
"""Share of a bound on memory that pieces under way may take: one part of so many."""

PER_VALUE = 80
"""Bytes of a value of a piece, decoded, as a column of the model and in a chunk, of all pieces under way."""

LEAST = 1 << 11
"""Rows of a piece at least."""

Fragment = Callable[[list[str] | None], Iterator[Any]]


class Scan:
    """Rows that are read in pieces, as often as they are asked for.

    Made by `scan`; `fastlmm_core.lmm` and `fastlmm_core.plan` take it in the place of a table.

    Parameters
    ----------
    fragments : sequence of (key, callable)
        Parts of the rows, in order: a name, and what iterates over tables when it is given the columns wanted.
    once : str
        Why the rows can be read only once, where they can; empty elsewhere.
    memory : float or None
        See `scan`.

    Attributes
    ----------
    memory : float or None
        Megabytes that a fit of these rows may take.
    passes : int
        How often the rows have been read, or been begun to be read.
    """

    def __init__(self, fragments: Sequence[tuple[Any, Fragment]], once: str = "", memory: float | None = None) -> None:
        self._fragments = list(fragments)
        self._once = once
        self.memory = memory
        self._held: list[Table] = []
        self._rest: Iterator[Table] | None = None
        self.passes = 0

    @property
    def keys(self) -> tuple[Any, ...]:
        """Names of the fragments, in order."""
        return tuple(key for key, _ in self._fragments)

    @property
    def once(self) -> bool:
        """Whether the rows can be read only once."""
        return bool(self._once)

    def fragment(self, key: Any) -> Scan:
        """One of the fragments by itself."""
        found = [part for part in self._fragments if part[0] == key]
        if not found:
            raise LMMError(f"the scan has no fragment {key!r}; its keys are in `keys`")
        return Scan(found, self._once, self.memory)

    def bounded(self, memory: float) -> Scan:
        """The same rows under a bound; files are read in the pieces that they were to be read in."""
        out = copy(self)
        out.memory = memory
        return out

    def look(self, columns: list[str] | None = None) -> Iterator[Table]:
        """Rows from the start, of which some are looked at before they are read; no pass is counted."""
        if not self._once:
            yield from self._read(columns)
            return
        self._refuse_again()
        if self._rest is None:
            self._rest = self._read(columns)
        yield from self._held
        for table in self._rest:
            self._held.append(table)
            yield table

    def tables(self, columns: list[str] | None = None) -> Iterator[Table]:
        """All rows in order, in tables with (at least) the columns wanted; empty tables are left out.

        Raises
        ------
        LMMError
            Where the rows have been read before, and cannot be read again.
        """
        self._refuse_again()
        self.passes += 1
        if not self._once or self._rest is None:
            yield from self._read(columns)
            return
        held, self._held = self._held, []
        yield from held
        del held
        yield from self._rest

    def _refuse_again(self) -> None:
        if self._once and self.passes:
            raise LMMError(
                f"the rows have to be read again, and {self._once}; give scan() something that can be read again, "
                "files, or a function that opens the stream anew; lmm(formula, source) finds levels, means and moments "
                "while it sums, and plan(..., levels=) needs none of those given"
            )

    def _read(self, columns: list[str] | None) -> Iterator[Table]:
        for key, fragment in self._fragments:
            for data in fragment(columns):
                table = Table(data, key if isinstance(key, str) else "data")
                if table.n_rows:
                    yield table

    def __repr__(self) -> str:
        again = "read once" if self._once else "read as often as needed"
        return f"<Scan: {len(self._fragments)} fragment{'s' if len(self._fragments) != 1 else ''}, {again}>"


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items of an iterator, made in another thread while the one before is worked on."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(AHEAD)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed over to whoever reads
            put("error", error)

    thread = threading.Thread(target=produce, name="fastlmm-scan", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "item":
                yield value
                value = None
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stopped.set()
        thread.join()


@checked
def scan(source: Any, *, memory: float | None = None) -> Scan:
    """Rows for a model that is fitted without holding them.

    Parameters
    ----------
    source : str, path, list of these, table, stream or callable
        Files ending in .parquet, .pq, .arrow, .feather or .csv: a name, a pattern such as ``"trips/*.parquet"``, a
        directory, or a list of names; they are read in sorted order.  A dataset of pyarrow.  A table of pandas, polars
        or pyarrow, a dict of arrays, or a list of tables.  Anything with ``__arrow_c_stream__``, such as a relation of
        DuckDB.  A function without arguments that gives an iterator over tables, called for each pass.  An iterator
        over tables, or a reader of record batches, which can be read only once.
    memory : float, optional
        Megabytes that a fit may take beside what Python and libraries have: files are read in smaller pieces, and more
        groups than have room are refused while they are read.

    Returns
    -------
    Scan
        Nothing has been read yet.

    Raises
    ------
    LMMError
        For files that are not there, or of another kind, and a bound that is not positive.

    Notes
    -----
    A fit reads the rows once; a second time where formulas have to see all rows first (levels of categorical columns,
    ``center()``, ``within()``), or where the columns are so badly conditioned that sums have to be taken anew.  Of what
    can be read only once the sums are taken in twice the precision too, from which those of better columns follow, and
    those of levels and means that are not known before the end.

    Examples
    --------
    >>> import fastlmm_core as flc
    >>> data = flc.datasets.load("sleepstudy")
    >>> parts = [data.iloc[:100], data.iloc[100:]]
    >>> result = flc.lmm("Reaction ~ Days + (Days | Subject)", flc.scan(parts)).fit()
    >>> round(result.criterion, 4)
    1743.6283
    """
    if memory is not None and not memory > 0.0:
        raise LMMError(f"memory={memory} must be a positive number of megabytes")
    if isinstance(source, Scan):
        return source if memory is None else source.bounded(memory)
    return _scanned(source, memory)


def _scanned(source: Any, memory: float | None) -> Scan:
    """`scan` of what is none yet."""
    if isinstance(source, str | os.PathLike):
        return Scan([(path, _file(path, memory)) for path in _paths(source)], memory=memory)
    if hasattr(source, "get_fragments"):
        return Scan(_dataset(source, memory), memory=memory)
    if hasattr(source, "collect_schema") and not _is_table(source):  # a lazy frame of polars
        return Scan([("data", lambda columns: _lazy(source, columns))], memory=memory)
    if _is_table(source):
        return Scan([("data", lambda columns: iter([source]))], memory=memory)
    if hasattr(source, "__arrow_c_stream__"):
        reader = import_module("pyarrow").RecordBatchReader
        once = "a reader of record batches gives them once" if isinstance(source, reader) else ""
        return Scan([("data", lambda columns: _stream(reader.from_stream(source), columns))], once, memory=memory)
    if isinstance(source, Sequence):
        if not len(source):
            raise LMMError("source is empty: give at least one file or table")
        if all(isinstance(part, str | os.PathLike) for part in source):
            return Scan([(path, _file(path, memory)) for part in source for path in _paths(part)], memory=memory)
        return Scan([(i, _one_table(part, i)) for i, part in enumerate(source)], memory=memory)
    if callable(source):
        return Scan([("data", lambda columns: _tables(source()))], memory=memory)
    if isinstance(source, Iterator):
        return Scan([("data", lambda columns: _tables(source))], "an iterator gives its tables once", memory=memory)
    raise LMMError(
        f"source is of type {type(source).__name__!r}; give the names of files, tables, something with "
        "__arrow_c_stream__, or a function that gives an iterator over tables"
    )


def _is_table(data: Any) -> bool:
    if isinstance(data, dict):
        return True
    for library, names in (
        ("pandas", ("DataFrame",)),
        ("polars", ("DataFrame",)),
        ("pyarrow", ("Table", "RecordBatch")),
    ):
        module = sys.modules.get(library)
        if module is not None and isinstance(data, tuple(getattr(module, name) for name in names)):
            return True
    return hasattr(data, "to_native")


def _one_table(part: Any, i: int) -> Fragment:
    if not _is_table(part):
        raise LMMError(f"source[{i}] is of type {type(part).__name__!r}; give the names of files, or tables")
    return lambda columns: iter([part])


def _tables(found: Any) -> Iterator[Any]:
    if _is_table(found):
        return iter([found])
    if hasattr(found, "__arrow_c_stream__") and not isinstance(found, Iterator):
        return _stream(import_module("pyarrow").RecordBatchReader.from_stream(found), None)
    if not isinstance(found, Iterable):
        raise LMMError(f"the function given to scan() returned {type(found).__name__!r}; let it give tables")
    return iter(found)


def _stream(reader: Any, columns: list[str] | None) -> Iterator[Any]:
    try:
        for batch in reader:
            yield _selected(batch, columns)
    finally:  # some sources give no second stream while one is open
        if hasattr(reader, "close"):
            reader.close()


def _selected(batch: Any, columns: list[str] | None) -> Any:
    return batch if columns is None else batch.select([name for name in batch.schema.names if name in columns])


def _lazy(frame: Any, columns: list[str] | None) -> Iterator[Any]:
    chosen = frame if columns is None else frame.select([n for n in frame.collect_schema().names() if n in columns])
    if not hasattr(chosen, "collect_batches"):  # before it gave pieces
        return iter([chosen.collect()])
    return iter(chosen.collect_batches(maintain_order=True))


# ---- files ------------------------------------------------------------------------------------------------


def _paths(given: Any) -> list[str]:
    """The files that a name or a pattern stands for, sorted."""
    text = os.fspath(given)
    path = Path(text)
    if path.is_dir():
        found = sorted(str(p) for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _READERS)
        kinds = sorted({Path(name).suffix.lower() for name in found})
        if len(kinds) > 1:
            raise LMMError(
                f"the directory {text!r} holds files of several kinds ({', '.join(kinds)}), which may be the same "
                f"rows; give a pattern, such as {os.path.join(text, '*' + kinds[0])!r}"
            )
    elif glob.has_magic(text) and not path.exists():
        found = sorted(glob.glob(text, recursive=True))
    else:
        found = [text] if path.exists() else []
    if not found:
        raise LMMError(f"no file is at {text!r}; check the name, or the pattern")
    for name in found:
        if Path(name).suffix.lower() not in _READERS:
            known = ", ".join(_READERS)
            raise LMMError(f"the file {name!r} has an ending that is unknown; files end in {known}")
    return found


def _piece_rows(memory: float | None, n_columns: int) -> int:
    """Rows that are decoded at a time."""
    if memory is None:
        return BATCH
    return int(min(BATCH, max(LEAST, memory * 2**20 / PIECES / (PER_VALUE * max(n_columns, 1)))))


def _file(path: str, memory: float | None) -> Fragment:
    read = _READERS[Path(path).suffix.lower()]

    def fragment(columns: list[str] | None) -> Iterator[Any]:
        try:
            yield from read(path, columns, memory)
        except (OSError, ValueError) as error:  # what pyarrow raises derives from these
            raise LMMError(f"the file {path!r} cannot be read: {error}") from error

    return fragment


def _parquet(path: str, columns: list[str] | None, memory: float | None) -> Iterator[Any]:
    parquet = import_module("pyarrow.parquet")
    metadata = parquet.read_metadata(path)
    schema = metadata.schema.to_arrow_schema()
    chosen = None if columns is None else [name for name in schema.names if name in columns]
    # rows of labels come as they are stored, by their places in a dictionary, instead of as text that is written out
    text = [name for name in chosen or () if str(schema.field(name).type) in ARROW_TEXT]
    with parquet.ParquetFile(path, metadata=metadata, read_dictionary=text, pre_buffer=False) as file:
        yield from file.iter_batches(_piece_rows(memory, len(chosen or schema.names)), columns=chosen)


def _arrow(path: str, columns: list[str] | None, memory: float | None) -> Iterator[Any]:
    arrow = import_module("pyarrow")
    with arrow.OSFile(path) as handle:
        file = import_module("pyarrow.ipc").open_file(handle)
        for i in range(file.num_record_batches):
            yield _selected(file.get_batch(i), columns)


def _csv(path: str, columns: list[str] | None, memory: float | None) -> Iterator[Any]:
    csv = import_module("pyarrow.csv")
    with csv.open_csv(path) as reader:  # in blocks of a megabyte
        yield from _stream(reader, columns)


_READERS: dict[str, Callable[[str, list[str] | None, float | None], Iterator[Any]]] = {
    ".parquet": _parquet, ".pq": _parquet, ".arrow": _arrow, ".feather": _arrow, ".csv": _csv,
}  # fmt: skip


def _dataset(dataset: Any, memory: float | None) -> list[tuple[Any, Fragment]]:
    """The files of a dataset one by one, so that their rows come in order."""

    def fragment(part: Any) -> Fragment:
        def read(columns: list[str] | None) -> Iterator[Any]:
            chosen = None if columns is None else [name for name in dataset.schema.names if name in columns]
            rows = _piece_rows(memory, len(dataset.schema.names if chosen is None else chosen))
            pieces = part.split_by_row_group() if hasattr(part, "split_by_row_group") else [part]
            for piece in pieces:
                # the batches of one row group come in order
                yield from piece.to_batches(schema=dataset.schema, columns=chosen, batch_size=rows)

        return read

    return [(getattr(part, "path", None) or i, fragment(part)) for i, part in enumerate(dataset.get_fragments())]
