"""From a CSV file of purchases, with ids of your own, to a ranked list.

    python examples/own_data.py [purchases.csv]

The file has the columns customer, product and day. Without one, the script makes up
a small shop.
"""

import random
import sys
import tempfile
from pathlib import Path

from ncf import (
    Interactions,
    ItemPop,
    NeuMF,
    Trainer,
    evaluate,
    leave_one_out,
    recommend,
    sample_candidates,
)


def made_up_purchases(path: Path) -> Path:
    """Write purchases of customers who each have one favourite department."""
    draw = random.Random(0)
    lines = ["customer,product,day"]
    for number in range(300):
        favourite = draw.choice(["garden", "kitchen", "music"])
        for day in range(12):
            department = (
                favourite
                if draw.random() < 0.8
                else draw.choice(["garden", "kitchen", "music"])
            )
            rank = int(40 * draw.random() ** 2)  # low ranks sell best
            lines.append(f"customer-{number:03},{department}-{rank:02},{day}")
    path.write_text("\n".join(lines) + "\n")
    return path


def main() -> None:
    """Run the example."""
    with tempfile.TemporaryDirectory() as folder:
        path = (
            sys.argv[1]
            if len(sys.argv) > 1
            else made_up_purchases(Path(folder) / "purchases.csv")
        )
        bought = Interactions.from_files(
            path, user="customer", item="product", timestamp="day", min_user_count=3
        )
    split = leave_one_out(bought)
    model = NeuMF(
        bought.num_users,
        bought.num_items,
        factors=16,
        layers=(32, 16),
        init_std=0.1,
    )
    print(
        bought,
        split,
        Trainer(model, epochs=20, batch_size=256).fit(split),
        sep="\n",
    )

    candidates = sample_candidates(split, num_negatives=50)
    print("popularity", evaluate(ItemPop(split.train), candidates, k=5))
    print("NeuMF     ", evaluate(model, candidates, k=5))

    customers = bought.user_ids.decode(split.test.users[:3])
    for customer, products in zip(
        customers,
        recommend(model, customers, k=5, exclude=bought).items,
        strict=True,
    ):
        print(customer, "→", ", ".join(products))


if __name__ == "__main__":
    main()
