"""Defines the losses of a head. Scores are (queries, candidates) with a right passage in column 0."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def contrastive(scores: Tensor) -> Tensor:
    """Computes InfoNCE over a query's own candidates: cross entropy with column 0 as the answer."""
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def distillation(scores: Tensor, teacher: Tensor) -> Tensor:
    """Computes the KL divergence from the teacher's distribution over a query's candidates to the student's."""
    return functional.kl_div(
        functional.log_softmax(scores, 1), functional.log_softmax(teacher, 1), log_target=True, reduction="batchmean"
    )


def l1(weights: Tensor) -> Tensor:
    """Computes the mean weight of a token: under a ReLU this has a gradient for every token that is not zero yet."""
    return weights.mean()
