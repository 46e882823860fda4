"""RecBole's NeuMF."""

# ruff: noqa: D102 -- methods are documented where `Contestant` is

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import recbole
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import NeuMF
from recbole.trainer import Trainer
from recbole.utils import init_seed
from recbole.utils.case_study import full_sort_topk

from benchmarks.peers.protocol import FACTORS, LAYERS, NEGATIVES, Clock, Data, Floats, Ints, Setting, main


class TimedTrainer(Trainer):
    """Tells the clock of every epoch."""

    clock: Clock

    def _train_epoch(self, *args, **kwargs):
        loss = super()._train_epoch(*args, **kwargs)
        self.clock.epoch()
        return loss


class RecBole:
    """`Contestant` over recbole."""

    def __init__(self, data: Data, prefix: str) -> None:
        self.data = data
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name) / "same"
        folder.mkdir()
        parts = {"train": (data.users, data.items), "test": (data.test_users, data.candidates[:, 0])}
        parts["valid"] = parts["test"]  # it asks for one; nothing looks at it
        for name, (users, items) in parts.items():
            table = np.stack([users, items], axis=1)
            np.savetxt(
                folder / f"same.{name}.inter",
                table,
                "%d",
                "\t",
                header="user_id:token\titem_id:token",
                comments="",
            )

    def fit(self, setting: Setting, seed: int, clock: Clock) -> None:
        config = Config(
            model="NeuMF",
            dataset="same",
            config_dict={
                "data_path": self.folder.name,
                "checkpoint_dir": self.folder.name,
                "benchmark_filename": ["train", "valid", "test"],
                "load_col": {"inter": ["user_id", "item_id"]},
                "mf_embedding_size": FACTORS,
                "mlp_embedding_size": LAYERS[0] // 2,
                "mlp_hidden_size": list(LAYERS[1:]),
                "dropout_prob": 0.0,
                "epochs": setting.epochs,
                "train_batch_size": setting.batch_size,
                "learning_rate": setting.learning_rate,
                "train_neg_sample_args": {
                    "distribution": "uniform",
                    "sample_num": NEGATIVES,
                    "alpha": 1.0,
                    "dynamic": False,
                    "candidate_num": 0,
                },
                "eval_args": {
                    "split": {"LS": "valid_and_test"},
                    "group_by": "user",
                    "order": "TO",
                    "mode": "full",
                },
                "use_gpu": False,
                "seed": seed,
                "show_progress": False,
                "state": "WARNING",
            },
        )
        init_seed(seed, True)
        dataset = create_dataset(config)
        train, _, self.test = data_preparation(config, dataset)
        tokens = [str(u) for u in range(self.data.num_users)]
        self.inner_users = torch.from_numpy(np.asarray(dataset.token2id("user_id", tokens)))
        known = dataset.field2token_id["item_id"]
        # A negative that occurs in no interaction has no row here: it gets that of the padding.
        self.inner_items = torch.tensor([known.get(str(i), 0) for i in range(self.data.num_items)])
        self.model = NeuMF(config, train.dataset)
        trainer = TimedTrainer(config, self.model)
        trainer.clock = clock
        clock.start()
        trainer.fit(train, verbose=False, saved=False, show_progress=False)

    @torch.no_grad()
    def score(self, users: Ints, items: Ints) -> Floats:
        was_training = self.model.training
        self.model.eval()
        pairs = {"user_id": self.inner_users[users], "item_id": self.inner_items[items]}
        scores = self.model.predict(Interaction(pairs)).numpy()
        self.model.train(was_training)
        return scores

    def top(self, users: Ints, k: int) -> object:
        return full_sort_topk(self.inner_users[users].numpy(), self.model, self.test, k)


if __name__ == "__main__":
    main(RecBole, version=recbole.__version__, model="NeuMF")
