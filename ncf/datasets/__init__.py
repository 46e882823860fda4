"""Published data sets as interactions: MovieLens, the paper's files, lists per user, folders of Parquet files."""

from ncf.datasets import movielens
from ncf.datasets.lists import read_lists
from ncf.datasets.ncf_files import read_ncf, write_ncf
from ncf.datasets.parquet import read_parquet, write_parquet

__all__ = ["movielens", "read_lists", "read_ncf", "read_parquet", "write_ncf", "write_parquet"]
