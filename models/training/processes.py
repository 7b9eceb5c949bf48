"""Several processes that train one model (`accelerate launch`, `torchrun`): who is first, and what the first one decides.

What must hold: alone, nothing of torch.distributed is touched; together, all take the same steps at the same learning rate and
end at the same one. The first process alone writes and reports.
"""

from __future__ import annotations

import os

from models.errors import SidstreamError


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is, counted from 0."""
    return int(os.environ.get("RANK", "0"))


def require_whole_models() -> None:
    """Raises ``SidstreamError`` where `accelerate launch` was told to divide a model's weights among the processes: checkpoints
    and validation take the model as one process has it, and would be of a part in silence.
    """
    for variable, option in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "").lower() == "true":
            raise SidstreamError(
                f"{option} divides a model's weights among processes, and training here needs each to have them all: launch it "
                "without, and need less memory by --lora, --precision bf16, --accumulate or --gradient-checkpointing"
            )


def require_own_precision(precision: str) -> None:
    """Raises ``SidstreamError`` where `accelerate launch` was told another precision than training: it would go by that one."""
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if told not in ("no", precision):
        raise SidstreamError(
            f"accelerate was told the precision {told}, and training {precision}: launch it without --mixed_precision, and give "
            "--precision bf16 for that"
        )


def is_first() -> bool:
    """Whether this one writes and reports."""
    return rank() == 0


def decided(*flags: bool) -> tuple[bool, ...]:
    """What the first process has decided: clocks differ, and all must do the same."""
    return tuple(map(bool, of_the_first(*flags)))


def of_the_first(*values: float) -> tuple[float, ...]:
    """The first process's numbers: of a clock, or of a validation that each makes of its own rounding."""
    if world() == 1:
        return values
    import torch

    told = torch.tensor(values, dtype=torch.float64, device=_device())
    torch.distributed.broadcast(told, src=0)
    return tuple(told.tolist())


def summed(value: float) -> float:
    """The sum of all processes' values."""
    if world() == 1:
        return value
    import torch

    total = torch.tensor(value, dtype=torch.float64, device=_device())
    torch.distributed.all_reduce(total)
    return float(total)


def _device() -> str:
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
