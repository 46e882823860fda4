"""Where interactions come from: MovieLens, the files of the paper, tables."""

from ncf.datasets import movielens
from ncf.datasets.ncf_files import read_ncf, write_ncf

__all__ = ["movielens", "read_ncf", "write_ncf"]
