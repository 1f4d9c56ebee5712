"""How far a model has drifted from its start on the responses that must survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loralign.data.completions import Completion, CompletionBatch, completion_batches, openings
from loralign.errors import DataError, NonFiniteError, StateError
from loralign.guard.head import OutputHead
from loralign.guard.modes import evaluating

# Logits formed at once: 32 MiB of float32 for each side.
_LOGITS_AT_ONCE = 2**23
# Nats by which the start's log-probabilities, made again from what was kept, may differ from what they were: more than
# bfloat16 rounds away, should they be made on another device.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class ProbeDrift:
    """What a model has lost against its start; means over samples of the means over response tokens, in nats.

    Args:
        kl: KL(start‖now) of the next-token distributions.
        logprob_lost: by how much the responses' log-probability has fallen; negative where it has risen.
        entropy: predictive entropy of the model now.
        per_sample_kl: ``(samples,)`` float64, in the order of the samples.
        per_sample_lost: ``(samples,)`` float64.
    """

    kl: float
    logprob_lost: float
    entropy: float
    per_sample_kl: Tensor
    per_sample_lost: Tensor


@dataclass(frozen=True)
class _Start:
    batches: list[CompletionBatch]
    states: Tensor
    log_probs: Tensor
    entropy: float
    head: nn.Module | None


class ProbeSet:
    """Prompts with responses that must survive, scored against the model as it was at the start (docs/adapting.md).

    Of the start only the last hidden states of the response tokens are kept, in the model's own dtype: ``4·tokens·d``
    bytes in float32 for hidden size ``d``, some 10 MiB for 100 responses to SmolLM2. Its distributions are made again
    from them a few hundred tokens at a time, so that neither they nor the logits of a batch are ever in memory. A
    model that has not changed has a KL of exactly zero in any dtype. One that has changed is measured in its dtype: in
    bfloat16 rounding alone costs some 1e-3 nats per token, and a smaller drift cannot be told from none.

    Measuring uses no randomness and leaves the model as it was found. In a run of several processes each measures the
    whole set: all get the same numbers without communication, and none waits for a longer share. They must all call,
    since a sharded model needs every process for a forward.

    Args:
        completions: tokenised samples, each with a response token.
        batch_size: samples per forward pass.
        pad_id: the token to pad with.
        response_tokens: how many of a response's first tokens count; all of them by default. There a refusal and an
            answer part ways, and the divergence follows the refusals; averaged over whole responses it is mostly that
            of one wording from another (docs/results.md).

    Raises:
        DataError: there are no samples, one has no response token, or fewer than one is to count.
    """

    def __init__(
        self,
        completions: Sequence[Completion],
        *,
        batch_size: int = 16,
        pad_id: int = 0,
        response_tokens: int | None = None,
    ) -> None:
        self.completions = openings(completions, response_tokens)
        self.batch_size = batch_size
        self.pad_id = pad_id
        self._start: _Start | None = None
        if not self.completions:
            raise DataError("there are no samples", place="probe set", fix="give prompts with responses")
        for index, completion in enumerate(self.completions):
            if completion.response_length < 1:
                raise DataError(
                    "the response has no token", place=f"probe sample {index}", fix="drop it or raise max_length"
                )
        self._tokens = torch.tensor([completion.response_length for completion in self.completions])

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def start_entropy(self) -> float:
        """Predictive entropy of the start, as :attr:`ProbeDrift.entropy`.

        Raises:
            StateError: nothing is cached.
        """
        return self._cached().entropy

    @torch.no_grad()
    def cache(self, model: Any) -> None:
        """Keep what is needed of the model as it is now; its adapter may be fresh, disabled or already trained.

        Args:
            model: causal language model, with PEFT or without, not wrapped for parallel training.

        Raises:
            ModelError: the model has no output embedding, or several.
            NonFiniteError: its probabilities are not finite.
        """
        limit = getattr(model.config, "max_position_embeddings", None)
        batches = completion_batches(self.completions, self.batch_size, self.pad_id, limit)
        with evaluating(model):
            head = OutputHead(model)
            states = _hidden(head, batches)
            labels, owners = _targets(batches)
            found = []
            for part in _parts(head, len(labels)):
                now = _log_softmax(head.logits(states[part]))
                found.append((_pick(now, labels[part]), _entropy(now)))
            log_probs, entropies = (torch.cat(column) for column in zip(*found, strict=True))
            entropy = float(self._per_sample(entropies, owners, "entropy").mean())
            self._start = _Start(batches, states, log_probs, entropy, head.copy_if_adaptable())

    @torch.no_grad()
    def measure(self, model: Any) -> ProbeDrift:
        """Drift of the model as it is now from what :meth:`cache` has kept.

        Args:
            model: the same model in the same precision, or another whose output embedding has the same weights.

        Raises:
            StateError: nothing is cached, or the output embedding is not that of the start.
            NonFiniteError: a divergence is infinite or not a number.
        """
        start = self._cached()
        labels, owners = _targets(start.batches)
        with evaluating(model):
            head = OutputHead(model)
            states = _hidden(head, start.batches)
            found = []
            for part in _parts(head, len(labels)):
                before = _log_softmax(head.logits(start.states[part], start.head))
                _check_head(_pick(before, labels[part]), start.log_probs[part])
                now = _log_softmax(head.logits(states[part]))
                found.append((_divergence(before, now), _pick(now, labels[part]), _entropy(now)))
        kl, log_probs, entropies = (torch.cat(column) for column in zip(*found, strict=True))
        per_sample_kl = self._per_sample(kl, owners, "divergence")
        per_sample_lost = self._per_sample(start.log_probs - log_probs, owners, "log-probability")
        entropy = self._per_sample(entropies, owners, "entropy")
        return ProbeDrift(
            float(per_sample_kl.mean()),
            float(per_sample_lost.mean()),
            float(entropy.mean()),
            per_sample_kl,
            per_sample_lost,
        )

    def _cached(self) -> _Start:
        if self._start is None:
            raise StateError("the start's side is not cached", place="probe set", fix="call cache(model) at the start")
        return self._start

    def _per_sample(self, values: Tensor, owners: Tensor, name: str) -> Tensor:
        """Mean of the tokens' values for every sample, ``(samples,)`` float64."""
        means = torch.zeros(len(self), dtype=torch.float64).index_add_(0, owners, values.double()) / self._tokens
        broken = (~means.isfinite()).nonzero()
        if len(broken):
            raise NonFiniteError(
                f"the {name} of {len(broken)} of {len(self)} samples is not finite",
                place=f"probe sample {int(broken[0])}",
                fix="look for weights that are not finite, or lower the learning rate",
            )
        return means


def _hidden(head: OutputHead, batches: list[CompletionBatch]) -> Tensor:
    """States that predict the response tokens of all batches, ``(tokens, hidden)`` on the CPU."""
    states = []
    for batch in batches:
        rows, positions = (batch.labels[:, 1:] != -100).nonzero(as_tuple=True)
        states.append(head.hidden(batch.input_ids, batch.attention_mask, rows, positions).cpu())
    return torch.cat(states)


def _targets(batches: list[CompletionBatch]) -> tuple[Tensor, Tensor]:
    """The response tokens and which sample each belongs to, both ``(tokens,)``."""
    labels, owners = [], []
    for batch in batches:
        wanted = batch.labels[:, 1:] != -100
        labels.append(batch.labels[:, 1:][wanted])
        owners.append(torch.tensor(batch.rows)[wanted.nonzero(as_tuple=True)[0]])
    return torch.cat(labels), torch.cat(owners)


def _parts(head: OutputHead, tokens: int) -> list[slice]:
    """Slices whose logits stay within the limit; a power of two, so that hardly any shape occurs but one."""
    size = int(min(max(1 << (_LOGITS_AT_ONCE // head.vocabulary).bit_length() - 1, 8), 512))
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _log_softmax(logits: Tensor) -> Tensor:
    log_probs: Tensor = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return log_probs


def _pick(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of the labels, ``(rows,)`` on the CPU."""
    return log_probs.gather(-1, labels.to(log_probs.device)[:, None])[:, 0].cpu()


def _entropy(log_probs: Tensor) -> Tensor:
    """Predictive entropy, ``(rows,)`` on the CPU, in nats."""
    entropy: Tensor = torch.special.entr(log_probs.exp()).sum(-1)
    return entropy.cpu()


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p‖q) of each row of log-probabilities, ``(rows,)`` on the CPU, in nats.

    Σ p·(log p − log q) + Σ(q − p): the second sum is zero but for rounding, and takes the first-order error of rounded
    log-probabilities out of the first. What little negative remains is set to 0; equal rows give exactly 0.
    """
    p = log_p.exp()
    divergence: Tensor = torch.linalg.vecdot(p, log_p - log_q) + (log_q.exp() - p).sum(-1)
    return divergence.clamp_min_(0).cpu()


def _check_head(found: Tensor, expected: Tensor) -> None:
    gap = float((found - expected).abs().mean())
    if not gap < _TOLERANCE:
        raise StateError(
            f"the start's log-probabilities came out {gap:.2g} nats away from what they were",
            place="probe set",
            fix="measure the model that was cached; if its output embedding was exchanged or merged, cache again",
        )
