"""Teacher forcing: given answers are fed under a rule, and the model says what it expected."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.accuracy.study.attention import Prompts
from benchmarks.accuracy.study.decoder import Decoder
from benchmarks.accuracy.study.model import Model


class Teacher(Decoder):
    """A decoder that is told each next token.

    `output` holds the model's first choice for each token of an answer. The first token follows the
    prompt alone, so it has no loss.

    Args:
        model: The model.
        prompts: Of `prefill`.
        budget: L in tokens.
        answers: The tokens that follow each prompt.

    Attributes:
        loss: float32 [rows, tokens], negative log-likelihood of each token of an answer, in nats.
        length: int64 [rows], tokens of each answer.

    Raises:
        ValueError: the kernels cannot take the model's shape.
    """

    def __init__(
        self, model: Model, prompts: Prompts, budget: int, answers: Sequence[Sequence[int]]
    ) -> None:
        longest = max(map(len, answers))
        super().__init__(model, prompts, budget, longest)
        padded = [[*answer, *[0] * (longest - len(answer))] for answer in answers]
        self.length = torch.tensor([len(answer) for answer in answers], device=model.device)
        self.loss = torch.zeros(len(answers), longest, device=model.device)
        self._given = torch.tensor(padded, device=model.device)

    def _first(self) -> Tensor:
        return self._given[:, 0]

    def _next(self, hidden: Tensor, at: Tensor) -> Tensor:
        logits = self.model.logits(hidden).float()
        tokens = self._given.view(-1)[at]
        self.output.view(-1).scatter_(0, at, logits.argmax(-1))
        self.loss.view(-1).scatter_(0, at, cross_entropy(logits, tokens, reduction="none"))
        return tokens

    def _is_end(self, tokens: Tensor) -> Tensor:
        return self.length[self.answer[: len(tokens)]] <= self.step + 2
