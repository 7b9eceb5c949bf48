"""Beam search without the constraint: how often a model writes SIDs that no item has (paper § 4.4, figure 5).

What must hold: any token of the vocabulary may come at any step; a token of the last layer ends a SID as it does in
serving, and so does the L-th token; scores are plain sums of log-probabilities; the k best finished sequences are the
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from models.sids.layout import PADDING, Layout
from models.sids.vocabulary import SidVocabulary
from retriever.search.forward_passes import forward_passes

BEAM_COUNTS: Final = (1, 2, 5, 10, 20, 30, 40, 50)
_QUERIES_A_BATCH: Final = 8


def free_beams(
    model: Any, vocabulary: SidVocabulary, prompts: list[list[int]], beams: int
) -> list[list[tuple[tuple[int, ...], float]]]:
    """The ``beams`` best token sequences of each prompt, best first: SID token numbers (-1 for a token that belongs to no
    SID) and log-probability.
    """
    layers, total = vocabulary.layers, vocabulary.total
    last_layer = vocabulary.layer_range(layers - 1)
    finished: list[list[tuple[tuple[int, ...], float]]] = [[] for _ in prompts]
    with torch.inference_mode():
        passes = forward_passes(model, max(map(len, prompts)) + layers)
        state = passes.start(prompts)
        scores = torch.zeros((len(prompts), 1))
        written = np.empty((len(prompts), 1, 0), dtype=np.int64)
        for step in range(layers):
            # Chosen on the processor, wherever the model runs.
            after = passes.logits(state, slice(0, total)).float().log_softmax(dim=-1).cpu()
            following = after + scores[:, :, None]
            # An ended sequence takes no beam: enough candidates for all beams to end and as many to go on.
            count = min(2 * beams, following[0].numel())
            best, place = following.flatten(1).topk(count, dim=1)
            parent, token = (place // total).numpy(), (place % total).numpy()
            sequences = np.concatenate((np.take_along_axis(written, parent[:, :, None], axis=1), token[:, :, None]), 2)
            ends = ((token >= last_layer.start) & (token < last_layer.stop)) | (step == layers - 1)
            for query, (rows, ended, values) in enumerate(zip(sequences, ends, best.tolist(), strict=True)):
                finished[query] += [
                    (tuple(vocabulary.sid_tokens(rows[at]).tolist()), values[at])
                    for at in np.flatnonzero(ended)
                    if values[at] > -np.inf
                ]
            if ends.all():
                break
            open_ = np.argsort(ends, axis=1, kind="stable")[:, :beams]
            scores = best.masked_fill(torch.from_numpy(ends), -np.inf).gather(1, torch.from_numpy(open_))
            written = np.take_along_axis(sequences, open_[:, :, None], axis=1)
            state = passes.advance(
                np.take_along_axis(token, open_, axis=1).astype(np.int64),
                np.take_along_axis(parent, open_, axis=1).astype(np.int64),
            )
    return [sorted(pairs, key=lambda pair: -pair[1])[:beams] for pairs in finished]


def invalid_shares(
    model: Any,
    vocabulary: SidVocabulary,
    prompts: Sequence[list[int]],
    codes: npt.NDArray[np.uint16],
    layout: Layout,
    beam_counts: Sequence[int] = BEAM_COUNTS,
) -> dict[str, float]:
    """Share of the answers that are no item's SID under ``layout``, for each number of beams k."""
    exist = {
        tuple(token for token in row if token != PADDING)
        for row in layout.sid_tokens(np.unique(codes, axis=0)).tolist()
    }
    shares = {}
    for beams in beam_counts:
        invalid = total = 0
        for start in range(0, len(prompts), _QUERIES_A_BATCH):
            for answer in free_beams(model, vocabulary, list(prompts[start : start + _QUERIES_A_BATCH]), beams):
                invalid += sum(sid not in exist for sid, _ in answer)
                total += len(answer)
        shares[str(beams)] = round(invalid / total, 5)
    return shares
