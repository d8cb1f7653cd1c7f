"""ASFT and EAFT against their formulas by hand, and in recipes: first losses, effects, and what is refused."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftlab.device import Machine
from ftlab.errors import LabError
from ftlab.recipe import memory_needs, to_script
from ftlab.recipe import read as recipes
from ftlab.runs import losses, train

CPU = Machine("cpu", "test", "float32", 2, 2**34, "test")


def first_loss(keys: dict, **changed: object) -> float:
    """Return the loss of a recipe's first step."""
    folder = f"{keys['output_dir']}-{'-'.join(f'{name}-{value}'.replace('/', '') for name, value in changed.items())}"
    made = recipes.load(keys | {"max_steps": 1, "output_dir": folder} | changed)
    return train.train(made).metrics["train_loss"]


def test_eaft_weighs_by_the_entropy_of_the_twenty_likeliest():
    even = torch.zeros(1, 40)
    assert losses.eaft(even, torch.tensor([3]), 1.0).item() == pytest.approx(math.log(40) * math.log(20) / 3)
    sure = torch.tensor([[100.0, 0.0, 0.0]])
    assert losses.eaft(sure, torch.tensor([1]), 1.0).item() == pytest.approx(0, abs=1e-6)
    assert losses.eaft(sure, torch.tensor([1]), 0.0).item() == pytest.approx(100)
    two = torch.tensor([[1.0, 1.0]])
    assert losses.eaft(two, torch.tensor([0]), 2.0).item() == pytest.approx(math.log(2) * (math.log(2) / 3) ** 2)


def test_eafts_weight_has_no_gradient():
    logits, label = torch.randn(4, 30, requires_grad=True), torch.tensor([0, 1, 2, 3])
    losses.eaft(logits, label, 1.0).sum().backward()
    top = logits.detach().topk(20).values.softmax(-1)
    weight = -(top * top.log()).sum(-1) / 3
    plain = (functional.softmax(logits.detach(), -1) - functional.one_hot(label, 30)) * weight.unsqueeze(-1)
    torch.testing.assert_close(logits.grad, plain)


def test_asft_is_dft_plus_the_divergence_from_the_reference():
    logits, reference, label = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([2])
    p, q = logits.softmax(-1)[0], reference.softmax(-1)[0]
    divergence = sum(b * math.log(b / a) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    wanted = -p[2].item() * math.log(p[2].item()) + 0.5 * divergence
    assert losses.asft(logits, label, reference, 0.5).item() == pytest.approx(wanted, rel=1e-5)
    assert losses.asft(logits, label, logits, 9.0).item() == pytest.approx(-p[2].item() * math.log(p[2].item()))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_asft_starts_at_dfts_loss_whatever_alpha_is(method, tiny_recipe):
    keys = tiny_recipe | {"finetuning_type": method, "gradient_accumulation_steps": 2}
    dft = first_loss(keys, use_dft_loss=True)
    assert first_loss(keys, use_asft_loss=True, asft_alpha=5.0) == pytest.approx(dft, rel=1e-4)
    # Both are a mean over tokens, in however many parts the step is taken.
    assert first_loss(keys, use_eaft_loss=True, eaft_alpha=0.0) == pytest.approx(first_loss(keys), rel=1e-4)


def test_asft_with_a_reference_of_its_own_is_another_loss(tiny_recipe, tiny_model_dir, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.nn.init.normal_(other.lm_head.weight)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "other")
    anchored = first_loss(tiny_recipe, use_asft_loss=True, ref_model=str(tmp_path / "other"))
    assert anchored > first_loss(tiny_recipe, use_asft_loss=True) * 1.01


def test_the_anchor_holds_the_model_near_its_start(tiny_recipe, tmp_path):
    far, near = (
        train.train(recipes.load(tiny_recipe | {"use_asft_loss": True, "asft_alpha": alpha, "output_dir": name}))
        for alpha, name in ((0.0, str(tmp_path / "far")), (50.0, str(tmp_path / "near")))
    )
    sizes = []
    for run in (far, near):
        weights = load_file(run.weights / "adapter_model.safetensors")
        sizes.append(sum(w.norm().item() for name, w in weights.items() if "lora_B" in name))
    assert sizes[1] < sizes[0]


def test_eaft_trains_a_mixture_with_its_balancing_loss(tiny_recipe, tiny_mixture_dir):
    keys = tiny_recipe | {"model_name_or_path": str(tiny_mixture_dir), "use_eaft_loss": True, "lora_target": "q_proj"}
    plain, heavy = (first_loss(keys, moe_aux_loss_coef=c, eaft_alpha=a) for c, a in ((0.0, 1.0), (1.0, 1.0)))
    assert heavy > plain + 0.5


@pytest.mark.parametrize(
    "keys",
    [
        {"use_asft_loss": True, "use_eaft_loss": True},
        {"use_asft_loss": True, "use_dft_loss": True},
        {"use_eaft_loss": True, "finetuning_type": "prompt_tuning"},
        {"use_asft_loss": True, "pissa_init": True},
        {"use_eaft_loss": True, "label_smoothing_factor": 0.1},
        {"use_asft_loss": True, "fsdp": True},
    ],
)
def test_what_they_cannot_be_combined_with_is_refused_in_one_line(keys, tiny_recipe):
    with pytest.raises(LabError, match=next(iter(keys))) as error:
        recipes.load(tiny_recipe | keys)
    assert error.value.exit_code == 2


def test_their_memory_is_that_of_whole_logits_and_of_a_copied_reference(tiny_recipe):
    def needs(**keys: object) -> memory_needs.Needs:
        return memory_needs.needs(recipes.load(tiny_recipe | {"finetuning_type": "full"} | keys), CPU)

    plain, eaft, asft = needs(), needs(use_eaft_loss=True), needs(use_asft_loss=True)
    assert eaft.logits < asft.logits
    assert plain.weights == eaft.weights and asft.weights == 2 * plain.weights


def test_a_script_of_trl_alone_cannot_have_them(tiny_recipe):
    with pytest.raises(LabError, match="use_eaft_loss"):
        to_script.script(recipes.load(tiny_recipe | {"use_eaft_loss": True}))
