"""Results of one forward pass over a text: its tokens' log probabilities, and its embedding."""

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from ftlab.apps.serve import sampling
from ftlab.apps.serve.job import Likelihood

# Positions whose logits are held at once: 256 of 150,000 tokens take 150 MB.
CHUNK = 256


@torch.inference_mode()
def prompt_likelihoods(model: PreTrainedModel | PeftModel, ids: list[int], count: int) -> list[Likelihood]:
    """Return the likelihood of each token given those before it; the first one has none.

    Args:
        count: how many likeliest tokens to report per position.
    """
    cache, likelihoods = DynamicCache(config=model.config), [Likelihood(ids[0], None, [])]
    for start in range(0, len(ids) - 1, CHUNK):
        part = torch.tensor([ids[start : start + CHUNK]], device=model.device)
        logits = model(input_ids=part, past_key_values=cache, use_cache=True).logits[0].float().cpu()
        following = ids[start + 1 : start + CHUNK + 1]
        likelihoods += [sampling.likelihood(*pair, count) for pair in zip(logits, following, strict=False)]
    return likelihoods


@torch.inference_mode()
def embedding(model: PreTrainedModel | PeftModel, ids: list[int]) -> list[float]:
    """Return the mean of a text's last hidden states, scaled to length 1; (hidden_size,)."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = plain.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(hidden[0].float().mean(0), dim=0).tolist()
