"""What follows from a machine."""

import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl.trainer import utils as trl_utils

from ftlab import device
from ftlab.device import Machine


def machine(accelerator: str, dtype: str) -> Machine:
    return Machine(accelerator, "test", dtype, cores=2, memory_bytes=2**34, reason="test")


def test_a_cpu_keeps_activations_and_casts_nothing():
    settings = device.training_arguments(machine("cpu", "bfloat16"))
    assert settings["use_cpu"] and not settings["gradient_checkpointing"]
    assert not settings["bf16"] and not settings["fp16"]


@pytest.mark.parametrize(("dtype", "bf16", "fp16"), [("float16", False, True), ("bfloat16", True, False)])
def test_a_gpu_trains_in_its_own_format(dtype, bf16, fp16):
    settings = device.training_arguments(machine("cuda", dtype))
    assert (settings["bf16"], settings["fp16"], settings["use_cpu"]) == (bf16, fp16, False)


def test_this_machine_can_be_described():
    here = device.describe()
    assert here.cores >= 1 and here.memory_bytes > 2**28 and here.dtype in str(here)
    assert device.versions()["torch"].startswith("2.") and device.installed("no-such-package") == "-"


def test_small_loss_tiles_change_no_number(monkeypatch):
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 32768)
    monkeypatch.setattr(trl_utils, "_use_triton", lambda device: False)
    monkeypatch.setattr(torch.nn.Linear, "forward", torch.nn.Linear.forward)
    large = loss_and_gradient()
    assert device.fit_output_layer(machine("cuda", "bfloat16")) == 32768
    assert device.fit_output_layer(machine("cpu", "bfloat16")) == 2048
    for before, after in zip(large, loss_and_gradient(), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5000, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    trl_utils.add_fused_lm_head(model)
    ids = torch.randint(0, 5000, (2, 12))
    labels = ids.masked_fill(torch.arange(12) < 7, -100)
    loss = model(input_ids=ids, labels=labels, fused_lm_head=True).loss
    loss.backward()
    return loss.detach(), model.model.embed_tokens.weight.grad


def test_the_last_position_of_many_rows_is_multiplied_without_copying_the_weight(monkeypatch):
    monkeypatch.setattr(torch.nn.Linear, "forward", torch.nn.Linear.forward)
    layer = torch.nn.Linear(32, 100, bias=False, dtype=torch.bfloat16)
    last = torch.randn(8, 5, 32, dtype=torch.bfloat16)[:, -1:]
    found = {}
    for fitted in (False, True):
        if fitted:
            device.fold_rows(machine("cpu", "bfloat16"))
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            found[fitted] = layer(last)
        names = {event.key for event in profile.key_averages()}
    assert "aten::bmm" not in names, "torch still multiplies row by row"
    assert torch.allclose(found[False].float(), found[True].float(), atol=1e-2)


def test_a_4_bit_model_that_has_answered_still_passes_gradients_back(tiny_model_dir):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16")
    ids = torch.arange(5, 25)[None]
    gradients = {}
    for answered in (False, True):
        model = LlamaForCausalLM.from_pretrained(tiny_model_dir, dtype="bfloat16", quantization_config=settings)
        device.keep_gradients(model)
        if answered:
            with torch.no_grad():
                model.eval()(ids)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        model.train()(inputs_embeds=embedded, labels=ids).loss.backward()
        gradients[answered] = embedded.grad
    assert gradients[False].abs().sum() > 0 and torch.equal(gradients[False], gradients[True])
