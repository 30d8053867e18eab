"""The state of all requests on the device, and what a decode step works with.

Letters in shapes: ``Y`` layers, ``R`` request rows of SGLang's `ReqToTokenPool` (row 0 is its
padding row), ``B`` rows of a decode batch, ``M`` rows of the largest one, ``Hq`` query heads, ``H``
KV heads, ``D`` head size, ``N`` tokens of the largest budget, ``V`` places that are chosen at a
time, ``G`` programs that score, ``C`` query heads of a KV head, rounded up to a power of two. The
*place* of a generated token is its index in the budget of its request, from 0 to L - 1.
"""

from typing import Self

import torch

from raas_kernels.record import Record, record, tensor

INT, FLOAT = torch.int32, torch.float32


@record
class RequestTables(Record):
    """What requests were admitted with; constant while a request runs.

    One entry for each row of a batch; the server keeps one for each request row in their place.
    """

    policies: torch.Tensor = tensor(
        "B", INT, "admission", "A `Policy`; 0 (dense) for free rows and for the padding row."
    )
    prompt_lens: torch.Tensor = tensor(
        "B", INT, "admission", "P, tokens before the first generated one."
    )
    budgets: torch.Tensor = tensor("B", INT, "admission", "L, a multiple of `BUDGET_UNIT`.")
    periods: torch.Tensor = tensor("B", INT, "admission", "`Policy.period`.")
    first_steps: torch.Tensor = tensor(
        "B",
        INT,
        "admission",
        "Generated tokens that were prefilled when the request was admitted last, 0 unless it was "
        "retracted; of earlier steps there are no queries.",
    )
    capacities: torch.Tensor = tensor(
        "B",
        INT,
        "admission",
        "Resident length at which the request stops growing: P + L, or more than any length.",
    )

    @classmethod
    def of(cls, stacked: torch.Tensor) -> Self:
        """Views of tables that are the rows of one tensor [tables, B], in their order here."""
        return cls(**dict(zip(cls.declared(), stacked.unbind(), strict=True)))


# Arguments of kernels. Where the tables of a batch begin depends on its rows, and Triton would
# compile a kernel again, in the middle of serving, for addresses that are multiples of 16.
TABLES = tuple(f"{name}_ptr" for name in RequestTables.declared())


@record
class EvictionBuffers(Record):
    """Eviction state, of all layers or of one (then without the dimension Y).

    Of a request that is resumed, admission writes births, weights, norms and victims anew.
    """

    births: torch.Tensor = tensor(
        "Y R H N", INT, "claim_slots", "Step that generated the token in each place; unique."
    )
    weights: torch.Tensor = tensor(
        "Y R H N",
        FLOAT,
        "claim_slots, score_tokens",
        "What the policy knows of each token; 0 at birth. raas: its importance when it was scored "
        "last. raas-paper: its timestamp, the largest of a page counts. h2o: the attention "
        "probability that it has gathered.",
    )
    value_norms: torch.Tensor = tensor(
        "Y R H N", FLOAT, "store_decode", "Euclidean norm of the token's value as it is stored."
    )
    victims: torch.Tensor = tensor(
        "Y R H V",
        INT,
        "score_tokens",
        "Places that the steps up to the next choice overwrite, in their order; raas-paper: one "
        "page.",
    )
    query_means: torch.Tensor = tensor(
        "Y R Hq D", FLOAT, "store_decode", "Mean of the row's recent queries, for raas."
    )
    query_variances: torch.Tensor = tensor(
        "Y R Hq D", FLOAT, "store_decode", "Variance of each of their dimensions, likewise."
    )
    key_means: torch.Tensor = tensor(
        "Y R H D", FLOAT, "store_decode", "Mean of the row's recent keys, likewise."
    )
    key_variances: torch.Tensor = tensor(
        "Y R H D", FLOAT, "store_decode", "Variance of each of their dimensions, likewise."
    )


@record
class StepBuffers(Record):
    """What one decode step passes between its begin, its layers and its end.

    All layers begin at once, in `claim_slots`, and end at once, in `score_tokens`; what is left for
    each layer is to store. Only the batch's rows are ever read.
    """

    targets: torch.Tensor = tensor(
        "Y M H", INT, "claim_slots", "KV slot that each head writes this step's token to."
    )
    places: torch.Tensor = tensor(
        "Y M H", INT, "claim_slots", "Its place in the budget; -1 for dense rows."
    )
    queries: torch.Tensor = tensor(
        "Y M Hq D",
        None,
        "store_decode",
        "This step's queries, of rows that are scored at every step.",
    )


def require_rows(of_step: Record, rows: int) -> None:
    """Checks that buffers are for batches as large as this one.

    Raises:
        ValueError: they are for smaller ones.
    """
    if of_step.sizes["M"] < rows:
        raise ValueError(
            f"{type(of_step).__name__} must hold the batch's {rows} rows, got "
            f"{of_step.sizes['M']}; allocate it for the largest batch"
        )


@record
class ScoreScratch(Record):
    """What `score_tokens` works with; nothing in it outlives the op."""

    due_rows: torch.Tensor = tensor(
        "M", INT, "score_tokens", "The rows that are scored, as many as ``due_count`` says."
    )
    due_count: torch.Tensor = tensor("1", INT, "score_tokens", "How many rows are scored.")
    logits: torch.Tensor = tensor(
        "G N+1 C",
        FLOAT,
        "score_tokens",
        "Logits of the head that each program has in hand, and their normalisers last. So many "
        "programs share the heads of all layers and due rows.",
    )
    scores: torch.Tensor = tensor("G N", FLOAT, "score_tokens", "Scores of its tokens.")
