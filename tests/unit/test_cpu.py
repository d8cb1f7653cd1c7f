"""ftlab's shortcuts on a CPU give the numbers of the libraries they stand in for: in float32 to 1e-5."""

import ast
import copy
import gc
import json
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

from ftlab import cpu, device
from ftlab.cpu import attention, linear, lora, models, output_layer, patches, prefix_sharing, rollout
from ftlab.errors import LabError
from ftlab.memory import PLAIN_ATTENTION
from ftlab.recipe import read as recipes
from ftlab.runs import chat, rewards, train

# Rows of different lengths, so that a batch of them has padding.
LENGTHS = (5, 9, 7)
EXACT = device.Machine("cpu", "test", "float32", 2, 2**34, "test")


def llama(**keys: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **{"attn_implementation": "eager"} | keys,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def rows() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randint(3, 300, (length,)) for length in LENGTHS]


def padded() -> dict[str, Tensor]:
    length = max(LENGTHS)
    ids = torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in rows()])
    return {"input_ids": ids, "attention_mask": torch.stack([(torch.arange(length) < n).long() for n in LENGTHS])}


def of_family(family: str, **keys: object) -> nn.Module:
    """Return a tiny random model of a family, with the attention of short rows on a CPU."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "attn_implementation": "eager",
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | keys)).train()


def prepare(model: nn.Module) -> None:
    """Give a model the fast paths that it would have in a recipe's run on a CPU."""
    models.prepare(model, cpu.decide(EXACT, family=models.base_of(model).config.model_type))


def gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def same(one: list[Tensor], other: list[Tensor], tolerance: float = 1e-5) -> None:
    """Compare to 1e-5: of a number above 1 relative to it, since float32 has seven digits, not places."""
    assert len(one) == len(other) > 0
    for left, right in zip(one, other, strict=True):
        scale = torch.clamp(right.detach().float().abs(), min=1)
        torch.testing.assert_close(left.float() / scale, right.float() / scale, rtol=0, atol=tolerance)


def compute_alike(plain: nn.Module, short: nn.Module, batch: dict[str, Tensor]) -> None:
    """Compare two models' logits and gradients where a batch has tokens."""
    real = batch["attention_mask"].bool()
    logits = [model(**batch, use_cache=False).logits[real] for model in (plain, short)]
    for found in logits:
        found.square().mean().backward()
    same([logits[0].detach()], [logits[1].detach()])
    same(gradients(plain), gradients(short))


@pytest.mark.parametrize("rows_at_once", [1, 4, 128])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_frozen_head_scores_as_trl_does(rows_at_once, temperature, monkeypatch):
    monkeypatch.setattr(output_layer, "FROZEN_ROWS", rows_at_once)
    torch.manual_seed(0)
    weight, targets = torch.randn(500, 16), torch.randint(0, 500, (11,))
    hidden = torch.randn(11, 16)
    # Some labels are the likeliest token.
    targets[:5] = (hidden[:5] @ weight.t()).argmax(-1)
    found, slopes = [], []
    for function in (ChunkedLogProbFunction.apply, output_layer.log_probs):
        leaf = hidden.clone().requires_grad_()
        columns = function(leaf, weight, None, targets, temperature, 64, None, 1.3, output_layer.ALL)
        # An entropy bonus asks for the gradient of the second column too.
        (columns[0] @ torch.linspace(1, 2, 11) + 0.1 * columns[1].sum()).backward()
        found.append([column.detach().float() for column in columns])
        slopes.append(leaf.grad)
    same(*found)
    same([slopes[0]], [slopes[1]])


def test_a_trained_head_is_left_to_trl():
    weight = torch.randn(50, 8, requires_grad=True)
    hidden = torch.randn(3, 8, requires_grad=True)
    output_layer.log_probs(hidden, weight, None, torch.tensor([1, 2, 3]), 1.0, 16)[0].sum().backward()
    assert weight.grad.abs().sum() > 0 and hidden.grad is not None


def adapted(base: nn.Module | None = None, **keys: object) -> nn.Module:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **keys)
    model = get_peft_model(base or llama(), config)
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("keys", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_lora_computes_as_peft_does(keys):
    plain = adapted(**keys)
    short = copy.deepcopy(plain)
    assert lora.install(short) == 14
    losses = [model(**padded(), labels=padded()["input_ids"]).loss for model in (plain, short)]
    for loss in losses:
        loss.backward()
    same([losses[0].detach()], [losses[1].detach()])
    same(gradients(plain), gradients(short))


def test_lora_beside_biased_layers_computes_as_peft_does():
    plain = adapted(llama(attention_bias=True, mlp_bias=True))
    short = copy.deepcopy(plain)
    lora.install(short)
    compute_alike(plain, short, padded())


def test_lora_computes_under_autocast():
    losses = []
    for install in (False, True):
        model = adapted()
        lora.install(model) if install else None
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(**padded(), labels=padded()["input_ids"]).loss)
        losses[-1].backward()
        assert len(gradients(model)) == 28
    same([losses[0].detach()], [losses[1].detach()], tolerance=0.02)


def test_adapters_switched_off_or_merged_go_pefts_way():
    model = adapted()
    lora.install(model)
    with torch.no_grad():
        trained = model(**padded()).logits
        with model.disable_adapter():
            same([model(**padded()).logits], [llama()(**padded()).logits])
        model.merge_adapter()
        same([model(**padded()).logits], [trained])


def test_adapters_in_float32_train_a_base_in_bfloat16():
    model = adapted().to(torch.bfloat16)
    for name, weight in model.named_parameters():
        weight.data = weight.data.float() if "lora_" in name else weight.data
    lora.install(model)
    model(**padded(), labels=padded()["input_ids"]).loss.backward()
    assert {gradient.dtype for gradient in gradients(model)} == {torch.float32}
    reference = adapted()
    reference(**padded(), labels=padded()["input_ids"]).loss.backward()
    for rounded, exact in zip(gradients(model), gradients(reference), strict=True):
        # bfloat16 has eight bits: a few hundredths of the gradient's length.
        assert (rounded - exact).norm() <= 0.05 * exact.norm()


def test_short_rows_attend_as_in_transformers():
    plain, short = llama(), llama()
    attention.use(short)
    assert attention.used(short) and not attention.used(plain)
    compute_alike(plain, short, padded())


def test_packed_rows_do_not_see_each_other():
    plain, short = llama(), llama()
    prepare(short)
    alone = plain(**padded(), use_cache=False).logits[padded()["attention_mask"].bool()]
    starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    # As trl's collator hands them over.
    together = short(
        input_ids=torch.cat(rows())[None],
        position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
        cu_seq_lens_q=starts,
        cu_seq_lens_k=starts,
        max_length_q=max(LENGTHS),
        max_length_k=max(LENGTHS),
        use_cache=False,
    ).logits[0]
    same([alone.detach()], [together.detach()])


def test_answers_are_the_same():
    plain, short = llama().eval(), llama().eval()
    attention.use(short)
    batch = padded() | {"attention_mask": padded()["attention_mask"].flip(1)}
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(**batch, **options), short.generate(**batch, **options))


@pytest.mark.parametrize("keys", [{}, {"val_size": 0.25, "eval_strategy": "epoch"}, {"packing": True}], ids=str)
def test_a_run_without_shortcuts_logs_the_same_losses(keys, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "describe", lambda: EXACT)
    logs = []
    for short in (True, False):
        folder = tmp_path / str(short)
        values = tiny_recipe | keys | {"shortcuts": short, "output_dir": str(folder), "learning_rate": 1e-3}
        train.train(recipes.load(values))
        lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
        logs.append([row[name] for row in lines for name in ("loss", "eval_loss", "grad_norm") if name in row])
    assert logs[0] == pytest.approx(logs[1], abs=2e-5)


def test_supervised_rows_are_read_once_where_they_begin_alike(tiny_recipe, tmp_path, monkeypatch):
    trees, given = [], []

    def grow(input_ids: Tensor, attention_mask: Tensor) -> prefix_sharing.Tree:
        trees.append(shared_grow(input_ids, attention_mask))
        given.append(int(attention_mask.sum()))
        return trees[-1]

    shared_grow = prefix_sharing.grow
    monkeypatch.setattr(prefix_sharing, "grow", grow)
    train.train(recipes.load(tiny_recipe | {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4}))
    # Every row begins with the template's first lines.
    assert trees and all(len(tree.tokens) < tokens for tree, tokens in zip(trees, given, strict=True))


def group(left: bool = True) -> dict[str, Tensor]:
    """Two questions with a common first line and three answers each, in no order; one answer comes twice."""
    torch.manual_seed(3)
    first = [7, 8, 9, 10]
    prompts = [[*first, 11], [*first, 12, 13]]
    answers = [torch.randint(20, 300, (n,)).tolist() for n in (2, 5, 1, 4, 3, 5)]
    chosen = [(0, 0), (1, 1), (1, 2), (0, 3), (0, 1), (1, 5), (0, 0)]
    made = [([0] * (left and 2 - len(prompts[p][4:])), prompts[p] + answers[a]) for p, a in chosen]
    length = max(len(padding) + len(row) for padding, row in made)
    mask = [[0] * len(p) + [1] * len(row) + [0] * (length - len(p) - len(row)) for p, row in made]
    ids = [p + row + [0] * (length - len(p) - len(row)) for p, row in made]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_rows_that_begin_alike_are_read_once():
    batch = group()
    tree = prefix_sharing.grow(**batch)
    # The first line, the rest of two questions, and six answers; one is the same as another.
    real = batch["attention_mask"].bool()
    count = 4 + 1 + 2 + (2 + 5 + 1 + 4 + 5 + 5)
    assert tree.nodes[real].unique().tolist() == list(range(count))
    # Three spare ones, so that few batches ask oneDNN for a kernel of their own.
    assert len(tree.tokens) == count + 3 == 2 * prefix_sharing.GRAIN
    assert torch.equal(tree.tokens[tree.nodes[real]], batch["input_ids"][real])
    assert torch.equal(tree.depths[tree.nodes[real]], (real.cumsum(1) - 1)[real])


@pytest.mark.parametrize("together", [0, 256], ids=["tables", "together"])
@pytest.mark.parametrize("batch", [group(), group(left=False), padded()], ids=["left", "right", "nothing shared"])
def test_a_tree_computes_as_its_rows_do(batch, together, monkeypatch):
    monkeypatch.setattr(prefix_sharing, "TOGETHER", together)
    assert (prefix_sharing.grow(**batch).mask is None) == (together == 0)
    plain, short = llama(), llama()
    attention.use(short)
    prefix_sharing.install(short.model)
    compute_alike(plain, short, batch)


def test_everything_installed_at_once_computes_the_same():
    batch = group()
    plain, short = adapted(), adapted()
    prepare(short)
    assert attention.used(short)
    compute_alike(plain, short, batch)


def test_another_family_gets_lora_alone():
    model = adapted()
    model.config.model_type = "gemma2"
    prepare(model)
    assert not attention.used(model) and "forward" in vars(lora.layers(model)[0])
    assert "forward" not in vars(model.get_base_model().model)


def test_a_tree_tells_hidden_states_too():
    batch = group()
    real = batch["attention_mask"].bool()
    places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    found = []
    for install in (False, True):
        model = llama()
        attention.use(model)
        prefix_sharing.install(model.model) if install else None
        with torch.no_grad():
            output = model(**batch, position_ids=places, use_cache=False, output_hidden_states=True)
        found.append([hidden[real] for hidden in output.hidden_states])
    same(*found)


def test_what_is_no_batch_of_whole_rows_is_no_tree(monkeypatch):
    model = llama()
    attention.use(model)
    prefix_sharing.install(model.model)
    monkeypatch.setattr(prefix_sharing, "grow", lambda *_: pytest.fail("grown"))
    batch = group()
    for call in (
        {"input_ids": batch["input_ids"]},
        batch | {"use_cache": True},
        batch | {"use_cache": False, "output_attentions": True},
        batch | {"use_cache": False, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]},
        # A hole in a row: what stands behind it is further away than the number of tokens between says.
        batch | {"use_cache": False, "attention_mask": batch["attention_mask"].index_fill(1, torch.tensor(3), 0)},
    ):
        model(**call)
    # Dropout is another one in every row.
    model.model.layers[0].mlp.down_proj = nn.Sequential(nn.Dropout(0.1), model.model.layers[0].mlp.down_proj)
    model(**batch, use_cache=False)


def prompts() -> dict[str, Tensor]:
    """Two questions, the shorter one padded on the left, each for a group of four."""
    ids = torch.tensor([[0, 7, 8, 9], [5, 6, 7, 11]]).repeat_interleave(4, 0)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def writers() -> list[nn.Module]:
    made = []
    for short in (False, True):
        model = adapted().eval()
        if short:
            attention.use(model.get_base_model())
            lora.install(model)
            rollout.install(model.get_base_model())
        made.append(model)
    return made


def test_a_group_writes_as_its_rows_do_alone():
    plain, short = writers()
    greedy = GenerationConfig(max_new_tokens=7, do_sample=False, pad_token_id=0)
    expected = plain.generate(**prompts(), generation_config=greedy)
    assert torch.equal(expected, short.generate(**prompts(), generation_config=greedy))
    # A token that one question's answer holds ends it; the other one goes on, and padding follows the first.
    greedy.eos_token_id = int(expected[0, 6])
    expected = plain.generate(**prompts(), generation_config=greedy)
    assert (expected == 0).any() and torch.equal(expected, short.generate(**prompts(), generation_config=greedy))
    assert not any(hasattr(layer, "kept") for layer in lora.layers(short))


@pytest.mark.parametrize("config", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_are_read_before_what_is_written(config):
    written = []
    for installed in (False, True):
        torch.manual_seed(1)
        model = get_peft_model(llama(), config(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight.normal_(std=2)
        if installed:
            attention.use(model.get_base_model())
            rollout.install(model.get_base_model())
        greedy = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
        written.append(model.generate(**prompts(), generation_config=greedy))
    assert torch.equal(*written)


def test_a_group_samples_from_the_models_distribution():
    _, short = writers()
    batch = {name: column[:1].expand(3000, -1) for name, column in prompts().items()}
    sampling = GenerationConfig(
        max_new_tokens=1, do_sample=True, temperature=0.5, top_k=0, top_p=1.0, pad_token_id=0, eos_token_id=299
    )
    torch.manual_seed(0)
    drawn = short.generate(**batch, generation_config=sampling)[:, -1].bincount(minlength=300) / 3000
    with torch.no_grad():
        expected = (short(**prompts()).logits[0, -1] / 0.5).softmax(-1)
    error = (expected * (1 - expected) / 3000).sqrt()
    assert ((drawn - expected).abs() <= 5 * error + 1 / 3000).all()


def test_draws_are_as_likely_as_they_are():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75], [1.0, 0.0, 0.0, 0.0]]).repeat_interleave(20_000, 0)
    torch.manual_seed(0)
    found = rollout.draw(probabilities).view(2, -1)
    assert set(found[0].tolist()) == {1, 3} and set(found[1].tolist()) == {0}
    assert (found[0] == 1).float().mean().item() == pytest.approx(0.25, abs=0.015)


def test_generation_of_another_kind_is_transformers_own(monkeypatch):
    _, short = writers()
    monkeypatch.setattr(rollout, "loop", lambda *_, **__: pytest.fail("looped"))
    beams = GenerationConfig(max_new_tokens=3, num_beams=2, do_sample=False, pad_token_id=0)
    assert short.generate(**prompts(), generation_config=beams).shape == (8, 7)
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, return_dict_in_generate=True)
    assert short.generate(**prompts(), generation_config=config).sequences.shape == (8, 7)
    assert short.generate(prompts()["input_ids"], max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (8, 7)


@pytest.mark.parametrize("stage", ["grpo", "rloo"])
def test_losses_of_groups_are_the_same(stage, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(device, "describe", lambda: EXACT)
    # The same completions on both sides: what is drawn is another test's subject.
    monkeypatch.setattr(rollout, "install", lambda model: None)
    reward = lambda completions, **_: [float(len(str(text))) for text in completions]  # noqa: E731
    monkeypatch.setitem(rewards.BUILT_IN, "short_answer", reward)
    logs = []
    for short in (True, False):
        folder = tmp_path / str(short)
        values = tiny_recipe | {
            "stage": stage, "reward_funcs": "short_answer", "num_generations": 4, "per_device_train_batch_size": 8,
            "max_new_tokens": 6, "pref_beta": 0.1, "max_steps": 2, "learning_rate": 1e-3,
            "shortcuts": short, "output_dir": str(folder),
        }  # fmt: skip
        train.train(recipes.load(values))
        lines = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
        logs.append([row[name] for row in lines for name in ("loss", "grad_norm", "kl", "reward") if name in row])
    assert len(logs[0]) >= 6 and logs[0] == pytest.approx(logs[1], abs=2e-5)


def unpatched() -> dict[str, object]:
    """Return "owner.name" -> value of everything that is ever replaced in the process."""
    owners = {patches.full_name(owner): owner for owner in (trl_utils, nn.Linear, Trainer)}
    assert owners.keys() == patches.IN_THE_PROCESS.keys()
    return {f"{owner}.{name}": vars(owners[owner])[name] for owner in owners for name in patches.IN_THE_PROCESS[owner]}


@pytest.fixture
def clean():
    """Begin and end with the libraries as they are."""
    cpu.undo()
    before = unpatched()
    yield before
    cpu.undo()
    assert unpatched() == before


@pytest.mark.parametrize("family", PLAIN_ATTENTION)
def test_every_family_computes_the_same_by_all_paths(family, clean):
    """With an adapter, on a group that shares prefixes, through TRL's own loss: losses and gradients to 1e-5."""
    # Padded on the right as TRL's collators do: on the left a padding place would be scored, on the row's first token.
    batch = group(left=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses, slopes = [], []
    for plan in (cpu.Plan(), cpu.decide(EXACT, family=family)):
        model = adapted(of_family(family))
        models.prepare(model, plan)
        trl_utils.add_fused_lm_head(models.base_of(model))
        with cpu.fast_paths(plan):
            loss = model(**batch, labels=labels, use_cache=False, fused_lm_head=True).loss
            loss.backward()
        losses.append(loss.detach())
        slopes.append(gradients(model))
    assert attention.used(models.base_of(model))
    same(losses[:1], losses[1:])
    same(*slopes)


@pytest.mark.parametrize("family", PLAIN_ATTENTION)
def test_every_family_writes_the_same(family):
    greedy = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=299)
    written = []
    for plan in (cpu.Plan(), cpu.decide(EXACT, family=family)):
        model = adapted(of_family(family)).eval()
        models.prepare(model, plan)
        written.append(model.generate(**prompts(), generation_config=greedy))
    assert torch.equal(*written)


def test_a_sliding_window_is_kept_by_all_paths(clean):
    """With rows and prompts that are longer than the window: logits and gradients to 1e-5, the same tokens."""
    window, plan = {"sliding_window": 3}, cpu.decide(EXACT, family="mistral")
    plain, short, whole = (of_family("mistral", **keys) for keys in (window, window, {"sliding_window": None}))
    models.prepare(short, plan)
    batch = group(left=False)
    compute_alike(plain, short, batch)
    assert not torch.allclose(plain(**batch).logits, whole(**batch).logits, atol=1e-3)
    greedy = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=299)
    texts = [model.eval().generate(**prompts(), generation_config=greedy) for model in (plain, short, whole)]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def count_calls(monkeypatch) -> Counter:
    """Count how often each path is entered."""
    entered: Counter = Counter()

    def spy(owner: object, name: str) -> None:
        own = getattr(owner, name)

        def spied(*given: object, **options: object) -> object:
            entered[f"{owner.__name__.split('.')[-1]}.{name}"] += 1
            return own(*given, **options)

        monkeypatch.setattr(owner, name, spied)

    for owner, name in PATHS:
        spy(owner, name)
    return entered


PATHS = (
    (output_layer, "log_probs"), (linear, "multiply_contiguous"), (lora, "forward"), (prefix_sharing, "grow"),
    (attention, "attend_padded"), (prefix_sharing, "attend_padded"), (rollout, "loop"),
)  # fmt: skip
WRITTEN = {
    "stage": "grpo", "reward_funcs": "short_answer", "num_generations": 4, "per_device_train_batch_size": 8,
    "max_new_tokens": 4, "max_steps": 1,
}  # fmt: skip


# Where every matrix has an adapter and the output layer is TRL's, only generation calls a linear layer by itself.
UNWRITTEN = {"rollout.loop", "linear.multiply_contiguous"}


@pytest.mark.parametrize(
    ("keys", "never"),
    [({"max_steps": 1}, UNWRITTEN), (WRITTEN, set()), (WRITTEN | {"stage": "rloo"}, set())],
    ids=["sft", "grpo", "rloo"],
)
def test_a_training_enters_every_path(keys, never, tiny_recipe, tmp_path, monkeypatch, clean):
    entered = count_calls(monkeypatch)
    train.train(recipes.load(tiny_recipe | keys | {"output_dir": str(tmp_path / "run")}))
    named = {f"{owner.__name__.split('.')[-1]}.{name}" for owner, name in PATHS}
    # Packed as a tree, attention goes through prefix_sharing's import of the same function.
    assert named - set(entered) <= never | {"attention.attend_padded"}


def test_without_shortcuts_a_run_replaces_nothing(tiny_recipe, tmp_path, monkeypatch, clean):
    """Not even where a lesson in the same process has its own line."""
    cpu.use_fast_paths()
    lesson = unpatched()
    assert lesson != clean
    entered, seen = count_calls(monkeypatch), []
    build_trainer = train.build.build_trainer

    def look(*given: object) -> Trainer:
        trainer = build_trainer(*given)
        patched = [name for module in trainer.model.modules() for name in patches.IN_A_MODEL if name in vars(module)]
        # Their own fused head is TRL's, on the model itself.
        seen.append((unpatched(), patched))
        return trainer

    monkeypatch.setattr(train.build, "build_trainer", look)
    values = {"shortcuts": False, "max_steps": 1, "output_dir": str(tmp_path / "run")}
    train.train(recipes.load(tiny_recipe | values))
    assert seen[0][0] == clean and seen[0][1] in ([], ["forward"]) and not entered
    assert unpatched() == lesson


@pytest.mark.parametrize("shortcuts", [True, False])
def test_without_shortcuts_a_chat_replaces_nothing(shortcuts, tiny_recipe, monkeypatch, clean):
    monkeypatch.setattr(device, "describe", lambda: EXACT)
    made = recipes.load(tiny_recipe | {"shortcuts": shortcuts})
    chat.load(made.model_name_or_path, **chat.options_of(made))
    assert (unpatched() != clean) == shortcuts


@pytest.mark.parametrize("where", patches.IN_THE_PROCESS)
def test_a_name_that_a_library_dropped_is_reported(where, clean, monkeypatch):
    owner = {patches.full_name(one): one for one in (trl_utils, nn.Linear, Trainer)}[where]
    for name in patches.IN_THE_PROCESS[where]:
        with monkeypatch.context() as gone:
            gone.delattr(owner, name)
            with pytest.raises(LabError, match=f"{where}.{name} no longer exists"):
                cpu.use_fast_paths()
        cpu.undo()


def test_undo_gives_models_back_and_frees_them(clean):
    model = adapted()
    prepare(model)
    prepare(model)
    assert attention.used(models.base_of(model)) and "forward" in vars(lora.layers(model)[0])
    cpu.undo()
    assert not any(name in vars(module) for module in model.modules() for name in patches.IN_A_MODEL)
    assert models.base_of(model).config._attn_implementation == "eager"
    compute_alike(adapted(), model, group())
    prepare(model)
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


def test_every_trainer_prepares_its_model(clean, tiny_recipe, tiny_tokenizer, tmp_path):
    """The one line of a lesson: attention that was asked for by name stays."""
    cpu.use_fast_paths()
    for kernel, shares in (("eager", True), ("sdpa", False)):
        base = llama(attn_implementation=kernel)
        args = SFTConfig(output_dir=str(tmp_path), max_steps=1, report_to="none", use_cpu=True, bf16=False)
        rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8]}] * 8)
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(base, args, train_dataset=rows, processing_class=tiny_tokenizer, peft_config=config)
        assert "forward" not in vars(lora.layers(trainer.model)[0])
        trainer.train()
        assert "forward" in vars(lora.layers(trainer.model)[0])
        assert attention.used(models.base_of(trainer.model)) == shares


def test_on_an_accelerator_the_line_does_nothing(clean, monkeypatch):
    monkeypatch.setattr(device, "describe", lambda: device.Machine("cuda", "a GPU", "bfloat16", 8, 2**34, ""))
    cpu.use_fast_paths()
    assert unpatched() == clean


def test_only_the_plan_decides():
    """Other files that ask for the key or the machine would be second places to decide."""
    files = [path for path in Path("ftlab").rglob("*.py") if "apps" not in path.parts]
    asking = {path.name for path in files if ".shortcuts" in path.read_text(encoding="utf-8")}
    # These hand the recipe's key to the plan: of a training, of an export, of a chat; the script prints the line.
    assert asking == {"library_args.py", "export.py", "chat.py", "to_script.py"}
    inside = [
        path.name for path in Path("ftlab/cpu").glob("*.py") if ".accelerator" in path.read_text(encoding="utf-8")
    ]
    assert inside == ["plan.py"]


def test_names_are_replaced_through_one_function():
    for path in Path("ftlab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign):
                named = {target.attr for target in node.targets if isinstance(target, ast.Attribute)}
                assert not named & {"forward", "generate", "_use_triton", "_ChunkedLogProbFunction"}, path


def test_two_rows_that_share_two_tokens_are_the_documented_tree():
    ids, mask = torch.tensor([[7, 8, 9, 4], [7, 8, 5, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    tree = prefix_sharing.grow(ids, mask)
    assert tree.tokens[:5].tolist() == [7, 8, 9, 4, 5] and tree.depths[:5].tolist() == [0, 1, 2, 3, 2]
    assert tree.nodes.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0]]
    seen = [row.nonzero()[:, 0].tolist() for row in tree.mask[0, 0, 2:5] == 0]
    assert seen == [[0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]
