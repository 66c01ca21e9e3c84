"""The caller's tables.

columns     pandas, polars, pyarrow and dicts behind one `Table`; results back in the caller's library
storage     what the columns of each library hold: numbers, text, categories
files       CSV and Parquet
lazy        lazy frames, relations of DuckDB, streams of Arrow
labels      labels to codes, and back
alignment   Series of pandas beside other rows
rows        the rows of the caller's table that a result is about
responses   tables of responses, one per column
stored      responses in files, chunks, sparse matrices and arrays with names
"""
