"""What the forks of chaos.py share: imported once, and without the collector, which would find nothing in all that."""

import gc

gc.disable()

import gepa  # noqa: E402, F401
import peft  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers.models.llama.modeling_llama  # noqa: E402, F401
import tyro  # noqa: E402, F401

gc.freeze()
gc.enable()
