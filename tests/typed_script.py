"""A script as users write it, for `test_typing.py`: everyday names, no annotation that ncf does not give."""

import tempfile

import torch

import ncf
from ncf import (
    EASE,
    GMF,
    Interactions,
    ItemPop,
    NeuMF,
    Trainer,
    compare,
    evaluate,
    leave_one_out,
    recommend,
    sample_candidates,
    whole_catalogue,
)


def main() -> None:
    """Read, split, train, evaluate, compare, recommend, save."""
    users = torch.arange(40).repeat_interleave(6)
    interactions = Interactions.from_arrays(users, (users * 7 + torch.arange(240)) % 30)
    split = leave_one_out(interactions)
    model = NeuMF(interactions.num_users, interactions.num_items, factors=4, layers=(8, 4))
    history: ncf.History = Trainer(model, epochs=2, batch_size=64, progress=False).fit(split)
    best: int = history.best_epoch
    candidates = sample_candidates(split, num_negatives=10)
    ranking = evaluate(model, candidates, k=5)
    hr: float = ranking.hr
    popular, ease = ItemPop(split.train), EASE(split.train)
    comparison = compare({"NeuMF": model, "ItemPop": popular, "EASE": ease}, candidates, k=5)
    print(best, round(hr, 3), comparison.best, evaluate(ease, whole_catalogue(split), k=5))
    lists = recommend(model, [0, 1], k=3, exclude=interactions)
    for items, scores in zip(lists.items, lists.scores, strict=True):
        print(items, [round(float(score), 3) for score in scores])
    logits: torch.Tensor = GMF(40, 30)(torch.tensor([0]), torch.tensor([1]))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        again = ncf.load(f"{folder}/model")
        print(logits.shape, again.predict(candidates.users[:2], candidates.positives[:2]))


if __name__ == "__main__":
    main()
