"""What follows from a machine."""

from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl.trainer import utils as trl_utils

from ftlab import cpu, device, models
from ftlab.apps import cli
from ftlab.device import Machine
from ftlab.errors import LabError
from ftlab.recipe import library_args
from ftlab.recipe import read as recipes
from ftlab.runs import build


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


def test_a_machine_is_described_without_torch_as_torch_describes_it(monkeypatch):
    asked = device.detected()
    if device.may_have_accelerator():
        pytest.skip("only torch can tell what accelerator this machine has")
    told = {name: value for name, value in torch.cpu.get_capabilities().items() if name in device.BFLOAT16 and value}
    assert device.linux_capabilities() == told
    monkeypatch.delitem(device.sys.modules, "torch")
    assert device.detected() == asked


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", {"avx512_bf16": True, "amx_bf16": True}),
        ("Features\t: fp asimd svebf16 i8mm bf16", {"sve_bf16": True, "bf16": True}),
        ("flags\t\t: fpu avx2", {}),
        ("", {}),
    ],
)
def test_instructions_are_read_under_the_names_that_torch_gives_them(monkeypatch, line, found):
    monkeypatch.setattr(device.Path, "read_text", lambda path, encoding: f"processor\t: 0\n{line}\n")
    assert device.linux_capabilities() == found


def test_a_driver_or_another_system_lets_torch_decide(monkeypatch, tmp_path):
    monkeypatch.setattr(device.platform, "system", lambda: "Linux")
    monkeypatch.setattr(device, "DRIVERS", (str(tmp_path / "nvidiactl"),))
    assert not device.may_have_accelerator()
    (tmp_path / "nvidiactl").touch()
    assert device.may_have_accelerator()
    monkeypatch.setattr(device, "DRIVERS", ())
    monkeypatch.setattr(device.platform, "system", lambda: "Darwin")
    assert device.may_have_accelerator()


@pytest.mark.parametrize("dtype", device.DTYPES)
def test_the_environment_overrides_the_format(monkeypatch, capsys, dtype):
    monkeypatch.setenv("FTLAB_DTYPE", dtype)
    assert (device.describe().dtype, device.describe().reason) == (dtype, "FTLAB_DTYPE")
    assert cli.main(["env"]) == 0
    assert f"train in {dtype}: FTLAB_DTYPE" in capsys.readouterr().out


def test_an_empty_override_leaves_the_choice_to_the_machine(monkeypatch):
    monkeypatch.setenv("FTLAB_DTYPE", "")
    assert device.describe() == device.detected()


@pytest.mark.parametrize(
    "verb",
    [
        *(["env"], ["train", "recipes/sft_lora.yaml"], ["course", "run", "00"], ["models"]),
        *(["chat", "smollm2-135m"], ["serve", "smollm2-135m"]),
        ["export", "recipes/merge.yaml"],
    ],
    ids=lambda verb: verb[0],
)
def test_another_format_is_refused_in_one_line_before_a_model_is_fetched(monkeypatch, capsys, verb):
    monkeypatch.setattr(models, "fetch", lambda *name, **source: pytest.fail(f"fetches {name}"))
    monkeypatch.setenv("FTLAB_DTYPE", "half")
    assert cli.main(verb) == 2
    said = capsys.readouterr().err
    assert (
        "FTLAB_DTYPE: `half` is not a supported training dtype" in said and "fix: " in said and "Traceback" not in said
    )


def test_only_device_asks_what_the_processor_multiplies():
    """A place that asks torch by itself would not see FTLAB_DTYPE."""
    asking = ("get_capabilities", "is_bf16_supported", "_is_avx512_bf16_supported", "get_device_capability")
    paths = [*Path("ftlab").rglob("*.py"), *Path("notebooks/source").glob("*.py")]
    found = {path.name for path in paths if any(name in path.read_text(encoding="utf-8") for name in asking)}
    assert found == {"device.py"}


def test_small_loss_tiles_change_no_number():
    cpu.undo()
    large = loss_and_gradient()
    assert trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE == cpu.decide(machine("cuda", "bfloat16")).loss_tile == 32768
    with cpu.fast_paths(cpu.decide(machine("cpu", "bfloat16"))):
        assert trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE == 2048
        small = loss_and_gradient()
    for before, after in zip(large, small, strict=True):
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


def test_the_last_position_of_many_rows_is_multiplied_without_copying_the_weight():
    layer = torch.nn.Linear(32, 100, bias=False, dtype=torch.bfloat16)
    last = torch.randn(8, 5, 32, dtype=torch.bfloat16)[:, -1:]
    found = {}
    for plan in (cpu.Plan(), cpu.answering(machine("cpu", "bfloat16"))):
        profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        with cpu.fast_paths(plan), torch.no_grad(), profiler as profile:
            found[plan.linear] = layer(last)
        names = {event.key for event in profile.key_averages()}
    assert "aten::bmm" not in names, "torch still multiplies row by row"
    assert torch.allclose(found[False].float(), found[True].float(), atol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packs", [False, None], ids=["elsewhere", "here"])
def test_a_4_bit_model_that_has_answered_still_passes_gradients_back(tiny_model_dir, monkeypatch, packs, dtype):
    """bitsandbytes looks at the processor by itself: whether it packs does not follow from FTLAB_DTYPE."""
    if packs is not None:
        monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: packs)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    ids = torch.arange(5, 25)[None]
    gradients = {}
    for answered in (False, True):
        model = LlamaForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype, quantization_config=settings)
        cpu.keep_gradients(model)
        if answered:
            with torch.no_grad():
                model.eval()(ids)
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        model.train()(inputs_embeds=embedded, labels=ids).loss.backward()
        gradients[answered] = embedded.grad
    assert gradients[False].abs().sum() > 0 and torch.equal(gradients[False], gradients[True])


def test_float16_is_not_trained_on_a_cpu(monkeypatch, tiny_recipe):
    monkeypatch.setenv("FTLAB_DTYPE", "float16")
    with pytest.raises(LabError, match="training in float16 needs loss scaling on a GPU"):
        library_args.training_settings(recipes.load(tiny_recipe), Path(tiny_recipe["output_dir"]), device.describe())


def test_an_adapter_for_a_gpu_is_prepared_for_it_before_it_is_moved_there(tiny_recipe):
    """The model is on the CPU until the trainer begins; what suits a CPU must not be installed."""
    made = recipes.load(tiny_recipe | {"lora_dropout": 0.1})
    gpu = device.Machine("cuda", "a GPU", "bfloat16", 8, 24 * 2**30, "")
    model = LlamaForCausalLM.from_pretrained(tiny_recipe["model_name_or_path"], dtype=torch.bfloat16)
    adapted = build.prepare_model(made, model, gpu)
    layer = adapted.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.dtype == torch.float32
    assert "forward" not in vars(layer)


def accelerator(monkeypatch, kind: str, **properties: object) -> None:
    """Let torch find one accelerator; its module has these properties, and multiplies bfloat16 if they say so."""
    module = SimpleNamespace(
        get_device_properties=lambda index: SimpleNamespace(**properties),
        is_bf16_supported=lambda: properties["bfloat16"],
    )
    # torch makes no device of a kind whose package is not installed.
    found = SimpleNamespace(type=kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module if kind is found else None)


@pytest.mark.parametrize(("major", "dtype"), [(7, "float16"), (8, "bfloat16"), (9, "bfloat16")])
def test_a_gpu_is_described_by_what_torch_says_of_it(monkeypatch, major, dtype):
    accelerator(monkeypatch, "cuda", name="a GPU", major=major, total_memory=16 * 2**30)
    found = device.detected()
    assert (found.accelerator, found.name, found.dtype, found.memory_bytes) == ("cuda", "a GPU", dtype, 16 * 2**30)


@pytest.mark.parametrize("kind", ["npu", "xpu"])
@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_an_accelerator_of_another_maker_is_described_alike(monkeypatch, kind, bfloat16, dtype):
    accelerator(monkeypatch, kind, name="its name", total_memory=64 * 2**30, bfloat16=bfloat16)
    found = device.detected()
    assert (found.accelerator, found.name, found.dtype, found.memory_bytes) == (kind, "its name", dtype, 64 * 2**30)
    settings = device.training_arguments(found)
    assert (settings["bf16"], settings["fp16"], settings["use_cpu"]) == (bfloat16, not bfloat16, False)


def test_an_apple_gpu_shares_the_machine_s_memory(monkeypatch):
    accelerator(monkeypatch, "mps")
    found = device.detected()
    assert (found.accelerator, found.dtype) == ("mps", "float32")
    assert found.memory_bytes == device.psutil.virtual_memory().total


def test_torch_for_intel_gpus_lets_torch_decide(monkeypatch):
    monkeypatch.setattr(device, "DRIVERS", ())
    monkeypatch.setattr(device, "installed", {"torch": "2.13.0+xpu"}.get)
    assert device.may_have_accelerator()


@pytest.mark.parametrize(("found", "dtype"), [({"amx_bf16": True}, "bfloat16"), ({"amx_bf16": False}, "float32")])
def test_a_processor_multiplies_bfloat16_if_it_has_an_instruction_for_it(found, dtype):
    assert device.processor(found).dtype == dtype
