"""HR@10 and NDCG@10 of the paper: tables 2 (NeuMF), 3 and 4 (MLP by depth)."""

from __future__ import annotations

FACTORS = (8, 16, 32, 64)
_MOVIELENS_1M = {
    "NeuMF": ((0.688, 0.696, 0.701, 0.705), (0.410, 0.420, 0.425, 0.426)),
    "NeuMF pre-trained": (
        (0.684, 0.707, 0.726, 0.730),
        (0.403, 0.426, 0.445, 0.447),
    ),
    "MLP-0": ((0.452, 0.454, 0.453, 0.453), (0.253, 0.252, 0.252, 0.251)),
    "MLP-1": ((0.628, 0.663, 0.682, 0.687), (0.359, 0.391, 0.406, 0.409)),
    "MLP-2": ((0.655, 0.674, 0.687, 0.696), (0.383, 0.402, 0.410, 0.417)),
    "MLP-3": ((0.671, 0.684, 0.692, 0.702), (0.399, 0.410, 0.425, 0.426)),
    "MLP-4": ((0.678, 0.690, 0.699, 0.707), (0.406, 0.415, 0.423, 0.432)),
}
_PINTEREST = {
    "NeuMF pre-trained": (
        (0.878, 0.880, 0.879, 0.877),
        (0.555, 0.558, 0.555, 0.552),
    ),
    "MLP-0": ((0.275, 0.274, 0.273, 0.274), (0.141, 0.141, 0.142, 0.141)),
    "MLP-1": ((0.848, 0.855, 0.861, 0.864), (0.526, 0.532, 0.537, 0.538)),
    "MLP-2": ((0.855, 0.861, 0.863, 0.867), (0.534, 0.536, 0.538, 0.542)),
    "MLP-3": ((0.859, 0.865, 0.868, 0.869), (0.536, 0.538, 0.542, 0.545)),
    "MLP-4": ((0.862, 0.867, 0.867, 0.873), (0.539, 0.544, 0.546, 0.550)),
}


def published(data: str) -> dict[tuple[str, int], tuple[float, float]]:
    """Return HR@10 and NDCG@10 by model and factors: of Pinterest or MovieLens-1M."""
    tables = _PINTEREST if "pinterest" in data.lower() else _MOVIELENS_1M
    return {
        (model, factors): (hr, ndcg)
        for model, (of_hr, of_ndcg) in tables.items()
        for factors, hr, ndcg in zip(FACTORS, of_hr, of_ndcg, strict=True)
    }
