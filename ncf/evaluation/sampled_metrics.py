"""Estimates of whole-catalogue metrics from sampled ranks (Krichene & Rendle, KDD 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ncf.data.candidates import Catalogue
from ncf.evaluation.intervals import Interval
from ncf.evaluation.metrics import Metric, metric_label, metric_values
from ncf.evaluation.ranking import Ranking
from ncf.utils.checks import check_choice

_SIZES_ALIKE = 0.02  # catalogues that differ by less share one estimator
_MEAN_RANKS = 40  # geometric distributions that a mixture of ranks is made of
_EM_STEPS = 200


@dataclass(frozen=True)
class CorrectedMetric:
    """A whole-catalogue metric estimated from sampled ranks.

    Args:
        metric: what is estimated.
        value: the estimate. It can leave [0, 1]: cutting it would bias it.
        standard_error: of the estimate, over users and over the candidates drawn.
        bias: how far its expectation lies from the truth, for the ranks that best explain the sampled ones.

    Example::

        >>> from ncf.evaluation.sampled_metrics import CorrectedMetric
        >>> print(CorrectedMetric("HR@10", value=0.12, standard_error=0.02, bias=0.01))
        HR@10 0.120 [0.071, 0.169] (estimated; bias +0.010)
    """

    metric: str
    value: float
    standard_error: float
    bias: float

    @property
    def interval(self) -> Interval:
        """95% interval: 1.96 standard errors, and the bias, to either side."""
        half = 1.96 * self.standard_error + abs(self.bias)
        return Interval(self.value - half, self.value + half)

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.3f} {self.interval} (estimated; bias {self.bias:+.3f})"


def correct_for_sampling(
    ranking: Ranking,
    catalogue: Catalogue | Tensor | int,
    metric: Metric = "hr",
    *,
    method: Literal["bias-variance", "rank"] = "bias-variance",
    gamma: float = 0.01,
) -> CorrectedMetric:
    """Estimate a metric over the whole catalogue from ranks among sampled candidates (Krichene & Rendle, KDD 2020).

    HR@10 among 101 candidates is not HR@10 in the catalogue, nor in proportion to it: it can order two
    models the other way round. Seen from rank r of n in the catalogue, the sampled rank among m others is
    hypergeometric: m draws from n - 1 items of which r are ahead. A correction gives every sampled rank a
    value, such that its expectation comes near the metric of r.

    - ``"bias-variance"``, the trade-off of the paper, minimises E[bias² + gamma · variance]. The expectation
      is over ranks with probability ∝ 1 / (r + k). (The paper takes all ranks alike, which leaves a model
      that ranks well with several times the bias.)
    - ``"rank"`` takes the metric at the estimated rank, (n - 1) · sampled rank / m. The rank is without bias;
      of the metrics only AUC is.

    No correction is free of bias: where n is far above m · k, hardly a sample holds one of the items that
    decide the metric. The stated bias is worked out for a mixture of geometric distributions of r, fitted to the
    sampled ranks by maximum likelihood; such mixtures include the falling power laws. Where the whole
    catalogue can be scored, score it: `whole_catalogue`.

    Args:
        ranking: of sampled candidates, as `evaluate` returns it.
        catalogue: what `whole_catalogue` gave for the same users; or n, how many items each user's held-out
            one would be ranked among, itself included, ``[U]`` or one for all.
        metric: ``"hr"``, ``"ndcg"``, ``"mrr"`` or ``"auc"``, at the ranking's ``k``.
        method: which estimator.
        gamma: weight of the variance, 0 to 1; more is steadier and more biased.

    Returns:
        `CorrectedMetric`.

    Raises:
        ValueError: if a catalogue is smaller than the candidates drawn from it or of other users, or an
            argument is unknown.

    Example::

        >>> import torch
        >>> from ncf import Ranking
        >>> from ncf.evaluation.sampled_metrics import correct_for_sampling
        >>> ranks = torch.arange(400) ** 2 // 1600
        >>> ranking = Ranking(torch.arange(400), ranks, torch.full((400,), 101))
        >>> ranking.hr
        0.3175
        >>> print(correct_for_sampling(ranking, catalogue=1001))
        HR@10 0.113 [0.065, 0.162] (estimated; bias +0.003)
    """
    if isinstance(catalogue, Catalogue):
        if not torch.equal(catalogue.users.cpu(), ranking.users):
            raise ValueError("the users of the catalogue and the ranking differ: take both from one split")
        catalogue = catalogue.num_items - catalogue.seen_offsets.diff().cpu()
    sizes = torch.as_tensor(catalogue, dtype=torch.int64, device="cpu").expand(len(ranking))
    small = (sizes < ranking.num_candidates).nonzero()
    if len(small):
        row = int(small[0])
        raise ValueError(
            f"catalogue[{row}] = {int(sizes[row])} items is less than the "
            f"{int(ranking.num_candidates[row])} candidates of that user"
        )
    check_choice("method", method, ("bias-variance", "rank"))
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma}: give a weight between 0 and 1")
    alike = (sizes.to(torch.float64).log() / _SIZES_ALIKE).floor().to(torch.int64)
    groups = torch.stack([ranking.num_candidates, alike], dim=1)
    groups, group_of = torch.unique(groups, dim=0, return_inverse=True)  # [G, 2], [U]
    estimates = torch.empty(len(ranking), dtype=torch.float64, device="cpu")
    likelihood = torch.empty(len(ranking), _MEAN_RANKS, dtype=torch.float64, device="cpu")
    biases = torch.zeros(_MEAN_RANKS, dtype=torch.float64, device="cpu")  # of each geometric distribution
    for group, (num_candidates, _) in enumerate(groups.tolist()):
        chosen = group_of == group
        ranks = ranking.ranks[chosen]
        size = int(sizes[chosen].to(torch.float64).mean().round())
        target = metric_values(
            metric,
            torch.arange(size, dtype=torch.int64, device="cpu"),
            torch.tensor(size, dtype=torch.int64, device="cpu"),
            ranking.k,
        )  # [n]
        law = sampled_rank_distribution(size, num_candidates - 1)  # [n, m + 1]
        prior = 1 / (torch.arange(size, dtype=torch.float64, device="cpu") + ranking.k)
        steady = method == "bias-variance"
        values = _steady_values(law, target, prior, gamma) if steady else _rank_values(target, law.shape[1])
        geometric = _geometric_distributions(size)  # [L, n]
        estimates[chosen] = values[ranks]
        likelihood[chosen] = (geometric @ law).T[ranks]
        biases += geometric @ (law @ values - target) * (len(ranks) / len(ranking))
    error = float(estimates.std()) / len(ranking) ** 0.5
    bias = float(_mixture_weights(likelihood) @ biases)
    return CorrectedMetric(metric_label(metric, ranking.k), float(estimates.mean()), error, bias)


def sampled_rank_distribution(size: int, drawn: int) -> Tensor:
    """Probability of every sampled rank, given the rank in the catalogue.

    Args:
        size: items in the catalogue, n, the held-out one included.
        drawn: distinct other items that were sampled, m.

    Returns:
        ``[n, m + 1]``, float64: row r is the hypergeometric distribution of m draws from n - 1, of which r are ahead.

    Example::

        >>> from ncf.evaluation.sampled_metrics import sampled_rank_distribution
        >>> sampled_rank_distribution(4, 1)
        tensor([[1.0000, 0.0000],
                [0.6667, 0.3333],
                [0.3333, 0.6667],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    log_factorial = torch.arange(size + 1, dtype=torch.float64, device="cpu").clamp(min=1).log().cumsum(0)

    def log_choose(n: Tensor, k: Tensor) -> Tensor:
        inside = (k >= 0) & (k <= n)
        n, k = n.clamp(min=0), k.clamp(min=0)
        ways = log_factorial[n] - log_factorial[k] - log_factorial[(n - k).clamp(min=0)]
        return ways.masked_fill(~inside, -torch.inf)

    ahead, hits = (
        torch.arange(size, dtype=torch.int64, device="cpu")[:, None],
        torch.arange(drawn + 1, dtype=torch.int64, device="cpu")[None, :],
    )
    every = log_choose(
        torch.tensor(size - 1, dtype=torch.int64, device="cpu"),
        torch.tensor(drawn, dtype=torch.int64, device="cpu"),
    )
    return (log_choose(ahead, hits) + log_choose(size - 1 - ahead, drawn - hits) - every).exp()


def _steady_values(law: Tensor, target: Tensor, prior: Tensor, gamma: float) -> Tensor:
    """The value of every sampled rank that minimises E[bias² + gamma · variance], a least-squares problem."""
    prior = prior / prior.sum()
    weighted = prior[:, None] * law  # [n, m + 1]
    squares = (1 - gamma) * (law.T @ weighted) + gamma * torch.diag(weighted.sum(0))
    values: Tensor = torch.linalg.lstsq(squares, weighted.T @ target, driver="gelsd").solution
    return values


def _rank_values(target: Tensor, num: int) -> Tensor:
    """The metric at the rank estimated from every sampled rank."""
    sampled = torch.arange(num, dtype=torch.float64, device="cpu")
    return target[((len(target) - 1) * sampled / max(1, num - 1)).round().to(torch.int64)]


def _geometric_distributions(size: int) -> Tensor:
    """Geometric distributions of the rank, cut at the catalogue's end, means from 0 to far beyond; ``[L, n]``."""
    means = torch.logspace(-2, math.log10(4.0 * size), _MEAN_RANKS, dtype=torch.float64, device="cpu")
    log_ratio = (means / (1 + means)).log()
    laws = torch.exp(log_ratio[:, None] * torch.arange(size, dtype=torch.int64, device="cpu"))
    return laws / laws.sum(1, keepdim=True)


def _mixture_weights(likelihood: Tensor) -> Tensor:
    """Maximum-likelihood weights of a mixture, by expectation maximisation: ``[U, L]`` to ``[L]``."""
    rows, counts = torch.unique(likelihood, dim=0, return_counts=True)
    shares = counts.to(torch.float64) / counts.sum()
    weights = torch.full((likelihood.shape[1],), 1 / likelihood.shape[1], dtype=torch.float64, device="cpu")
    for _ in range(_EM_STEPS):
        joint = rows * weights
        weights = shares @ (joint / joint.sum(1, keepdim=True))
    return weights
