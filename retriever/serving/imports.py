"""Everything that a retriever imports before its first answer, in one place: for a process that imports it for others.

What must hold: importing this starts no thread, reads no settings and touches no device.
"""

from __future__ import annotations

import safetensors.torch
import tokenizers
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2
from transformers import AutoModelForCausalLM

import models.bundles.model_of_bundle
import models.language.devices
import retriever.serving.process

__all__ = ["AutoModelForCausalLM", "models", "retriever", "safetensors", "tokenizers", "transformers"]
