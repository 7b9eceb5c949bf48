"""Choices of fixed shape on the device: nothing here asks the host how many there are.

What must hold: the greatest are chosen, equal ones in their order, and come out in their order: what the host's search does.
"""

from __future__ import annotations

import torch


def choose(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``count`` greatest of each row of scores (B, N): places int64 (B, count), rising, and their scores.

    Scores that are -∞ are never chosen: where a row has too few others, place 0 with the score -∞ stands at its end.
    """
    queries, width = scores.shape
    if width < count:
        scores = torch.nn.functional.pad(scores, (0, count - width), value=-torch.inf)
        width = count
    least = scores.topk(count, dim=1).values[:, -1:]
    above, equal = scores > least, scores == least
    room = count - above.sum(dim=1, keepdim=True)
    chosen = (above | (equal & (equal.cumsum(dim=1) <= room))) & (scores > -torch.inf)
    # Each chosen place goes to its number among them, all others to a place behind that is thrown away.
    number = torch.where(chosen, chosen.cumsum(dim=1) - 1, count)
    every = torch.arange(width, device=scores.device).expand(queries, -1)
    places = torch.zeros((queries, count + 1), dtype=torch.int64, device=scores.device)
    places = places.scatter(1, number, every)[:, :count]
    there = torch.arange(count, device=scores.device) < chosen.sum(dim=1, keepdim=True)
    places = torch.where(there, places, 0)
    return places, torch.where(there, scores.gather(1, places), -torch.inf)


def bits_of(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Bools (…, ``size``) of uint8 (…, ⌈size / 8⌉), most significant bit first."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    live = (packed[..., None] >> shifts) & 1
    return live.flatten(-2)[..., :size].bool()
