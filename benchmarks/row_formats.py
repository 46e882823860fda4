"""Saved models with rows of fewer bits: how much smaller the tables are, and what the rankings lose."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open

import ncf
from ncf import NeuMF, Trainer, evaluate, leave_one_out, sample_candidates
from ncf.datasets import movielens, read_ncf
from ncf.utils.row_formats import ROW_FORMATS


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.row_formats", description=__doc__)
    parser.add_argument("--files", help="prefix of the paper's three files; by default MovieLens-100K")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    if options.files:
        split, candidates = read_ncf(options.files)
    else:
        split = leave_one_out(movielens.load("100k").interactions, validation=False)
        candidates = sample_candidates(split)
    reached: dict[str, list[Any]] = {rows: [] for rows in ROW_FORMATS}
    size = dict.fromkeys(ROW_FORMATS, (0, 0))
    for seed in range(options.seeds):
        model = NeuMF(split.train.num_users, split.train.num_items, factors=32, seed=seed)
        Trainer(model, epochs=options.epochs, selection="last", seed=seed, progress=False).fit(split)
        for rows in ROW_FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                model.save(folder, rows=rows)
                (file,) = Path(folder).glob("model-*.safetensors")
                with safe_open(file, "pt") as tensors:
                    tables = [tensors.get_tensor(name) for name in tensors.keys() if "embeddings" in name]  # noqa: SIM118
                size[rows] = sum(table.nbytes for table in tables), file.stat().st_size
                reached[rows].append(evaluate(ncf.load(folder), candidates))
    for rows, rankings in reached.items():
        hr, ndcg = ([getattr(ranking, name) for ranking in rankings] for name in ("hr", "ndcg"))
        plain = reached["float32"]
        lost = [
            max(
                getattr(before, name) - getattr(after, name)
                for before, after in zip(plain, rankings, strict=True)
            )
            for name in ("hr", "ndcg")
        ]
        tables, file = (before / after for before, after in zip(size["float32"], size[rows], strict=True))
        print(
            f"{rows:9} tables 1/{tables:.2f}, file 1/{file:.2f}   HR@10 {sum(hr) / len(hr):.4f} "
            f"NDCG@10 {sum(ndcg) / len(ndcg):.4f}   most lost with a seed {lost[0]:+.4f} {lost[1]:+.4f}"
        )


if __name__ == "__main__":
    main()
