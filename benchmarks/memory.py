"""Peak memory of a MovieLens-100K run, above what ``import torchrec`` takes by itself."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

_STEPS = """\
import json, sys, warnings
warnings.simplefilter("ignore")
peaks = {{}}
def peak(name):
    lines = dict(line.split(":") for line in open("/proc/self/status").read().splitlines())
    peaks[name] = int(lines["VmHWM"].split()[0]) / 1024
{steps}
json.dump(peaks, sys.stdout)
"""
_BARE = """\
import torchrec
peak("import torchrec")
"""
_RUN = """\
import ncf
import ncf.utils.torchrec_import
from ncf.datasets import movielens
peak("import ncf")
interactions = movielens.load("100k").interactions
peak("load")
split = ncf.leave_one_out(interactions)
model = ncf.NeuMF(interactions.num_users, interactions.num_items, factors=8, layers=(32, 16, 8))
peak("split, model")
ncf.Trainer(model, epochs=3, progress=False, optimizer='adam').fit(split)
peak("train")
ncf.evaluate(model, ncf.sample_candidates(split))
peak("rank 1 + 100")
ncf.evaluate(model, ncf.whole_catalogue(split))
peak("rank the catalogue")
"""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.parse_args()
    measure(
        "import ncf; from ncf.datasets import movielens; movielens.load('100k')"
    )  # fetched once, not counted
    bare = measure(_BARE)["import torchrec"]
    print(f"{'import torchrec':20} {bare:6.0f} MB")
    for name, value in measure(_RUN).items():
        print(f"{name:20} {value:6.0f} MB  {value - bare:+5.0f}")


def measure(steps: str) -> dict[str, float]:
    """Peak resident megabytes after each step, in a process of its own."""
    script = _STEPS.format(steps=steps)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    peaks: dict[str, float] = json.loads(done.stdout)
    return peaks


if __name__ == "__main__":
    main()
