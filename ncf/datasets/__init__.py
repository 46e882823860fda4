"""Where interactions come from: MovieLens, the files of the paper, tables."""

from ncf.datasets import movielens

__all__ = ["movielens"]
