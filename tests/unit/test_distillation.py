"""`stage: gkd` against the divergences of arXiv:2306.13649 in numpy, and what it refuses."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_small_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ftlab import cpu, device, memory
from ftlab.errors import LabError
from ftlab.recipe import library_args, memory_needs, to_script
from ftlab.recipe import read as recipes
from ftlab.runs import build, dataset, train
from tests.resuming import weights_with_and_without_a_stop
from tests.tiny import make_tokenizer


@pytest.fixture
def keys(tiny_recipe, tiny_model_dir, tmp_path):
    """The keys of a recipe whose teacher is another model than its student, and larger."""
    teacher = make_small_model(tiny_model_dir, tmp_path / "teacher")
    mine = {"stage": "gkd", "teacher_model": str(teacher), "max_new_tokens": 6, "learning_rate": 1e-2, "max_steps": 4}
    return tiny_recipe | mine


def trainer_of(made):
    """Return the trainer that a recipe would run."""
    job = train.prepare(made, Path(made.output_dir))
    torch.manual_seed(0)
    model = build.prepare_model(made, build.load_model(made, job.model_path, job.machine), job.machine)
    return build.build_trainer(made, model, job.args, job.tokenizer, job.datasets, [])


def divergence(student: np.ndarray, teacher: np.ndarray, beta: float) -> float:
    """Return the mean generalized Jensen-Shannon divergence of rows of logits, (N, V), in nats."""
    ours, theirs = (np.exp(one - one.max(1, keepdims=True)) for one in (student, teacher))
    ours, theirs = (one / one.sum(1, keepdims=True) for one in (ours, theirs))

    def kl(p, q):
        return (p * (np.log(p) - np.log(q))).sum(1)

    if beta in (0, 1):
        return float((kl(ours, theirs) if beta else kl(theirs, ours)).mean())
    mixture = beta * theirs + (1 - beta) * ours
    return float((beta * kl(theirs, mixture) + (1 - beta) * kl(ours, mixture)).mean())


@pytest.mark.parametrize("shortcuts", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_its_loss_is_the_divergence_from_the_teacher(beta, shortcuts, keys, tiny_model_dir):
    trainer = trainer_of(recipes.load(keys | {"beta": beta, "lmbda": 0.0, "shortcuts": shortcuts}))
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch).item()
        found = []
        for folder in (tiny_model_dir, keys["teacher_model"]):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            # Row by row, without padding.
            rows = [
                (ids[mask.bool()], label[mask.bool()])
                for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
            ]
            logits = [model(input_ids=ids[None]).logits[0, :-1][label[1:] != -100] for ids, label in rows]
            found.append(torch.cat(logits).double().numpy())
    assert loss == pytest.approx(divergence(*found, beta), rel=2e-3)
    assert len(found[0]) == int((batch["labels"] != -100).sum()) and loss > 1e-4


def test_what_is_answered_is_what_comes_before_the_last_answer(keys, tmp_path):
    turns = [("user", "Hi"), ("assistant", "Yes."), ("user", "Why?"), ("assistant", "So.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "turns.jsonl").write_text(f"{json.dumps(row)}\n")
    made = recipes.load(keys | {"dataset": str(tmp_path / "turns.jsonl"), "per_device_train_batch_size": 1})
    trainer = trainer_of(made)
    (batch,) = trainer.get_train_dataloader()
    tokenizer = trainer.processing_class
    asked = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
    assert tokenizer.decode(batch["prompts"][0]) == asked
    trained = batch["labels"][0] != -100
    assert tokenizer.decode(batch["labels"][0][trained], skip_special_tokens=True) == "So."


@pytest.mark.parametrize(
    ("lmbda", "seq_kd", "writer"), [(1.0, False, "model"), (0.0, True, "teacher"), (0.0, False, "")]
)
def test_answers_are_written_by_whom_the_recipe_names(lmbda, seq_kd, writer, keys, monkeypatch):
    trainer = trainer_of(recipes.load(keys | {"lmbda": lmbda, "seq_kd": seq_kd, "max_new_tokens": 5}))
    wrote, given = [], []
    base = trainer.model.get_base_model()
    for name, model in (("model", base), ("teacher", trainer.teacher_model)):
        own = model.generate

        def spied(*args, own=own, name=name, **options):
            wrote.append(name)
            assert options["generation_config"].temperature == pytest.approx(0.95)
            return own(*args, **options)

        monkeypatch.setattr(model, "generate", spied)
    compute_loss = trainer.compute_loss
    monkeypatch.setattr(
        trainer,
        "compute_loss",
        lambda model, inputs, **more: given.append(inputs) or compute_loss(model, inputs, **more),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    labels, width = batch["labels"].clone(), batch["prompts"].shape[1]
    # What `train` sets.
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, batch)
    assert set(wrote) == ({writer} if writer else set())
    if writer:
        assert given[0]["input_ids"].shape == (len(labels), width + 5)
        assert (given[0]["labels"][:, :width] == -100).all() and (given[0]["labels"][:, width] != -100).all()
    else:
        assert torch.equal(given[0]["labels"], labels)


def test_it_comes_closer_to_the_teacher_and_is_reused(keys):
    longer = keys | {"max_steps": 40, "lmbda": 0.0, "finetuning_type": "full", "bf16": False}
    longer |= {"eval_dataset": keys["dataset"], "eval_strategy": "steps", "eval_steps": 40}
    run = train.train(recipes.load(longer))
    log = [json.loads(line) for line in (run.folder / "train_log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0] / 2
    assert any(row["eval_loss"] < losses[0] / 2 for row in log if "eval_loss" in row)
    assert train.train(recipes.load(longer)).reused
    for changed in ({"lmbda": 0.5}, {"beta": 0.1}):
        with pytest.raises(LabError, match=f"{next(iter(changed))}: "):
            train.train(recipes.load(longer | changed))


def test_a_stopped_run_resumes_to_the_same_weights(keys, tmp_path):
    """Whose answers a batch has, and the answers themselves, are drawn at random."""
    keys |= {"max_steps": 6, "seq_kd": True}
    whole, resumed = weights_with_and_without_a_stop(keys, tmp_path)
    assert whole == resumed


def test_the_trl_script_trains_the_same_run(keys, tmp_path):
    run = train.train(recipes.load(keys))
    log = [json.loads(line) for line in (run.folder / "train_log.jsonl").read_text().splitlines()]
    path = tmp_path / "script.py"
    path.write_text(to_script.script(recipes.load(keys | {"output_dir": str(tmp_path / "script")})))
    trained = runpy.run_path(str(path))["trainer"]
    cpu.undo()
    history = [row["loss"] for row in trained.state.log_history if "loss" in row]
    assert len(history) == 4
    assert history == pytest.approx([row["loss"] for row in log if "loss" in row], rel=1e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"teacher_model": None}, "needs a `teacher_model`"),
        ({"add_tokens": "new"}, "`teacher_model` lacks"),
        ({"fsdp": "full_shard"}, "`teacher_model` is a second model"),
        ({"rope_scaling": "linear"}, "`teacher_model` is read with"),
        ({"finetuning_type": "prefix_tuning"}, "`stage: gkd` between virtual tokens"),
        ({"packing": True}, "not for `stage: gkd`"),
        ({"lmbda": 1.5}, "lmbda"),
        ({"beta": -0.1}, "beta"),
        ({"stage": "dpo", "beta": 0.2}, "`stage: dpo` may have `pref_beta`"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_done_is_one_line(more, said, keys):
    values = {name: value for name, value in (keys | more).items() if value is not None}
    with pytest.raises(LabError, match=said) as error:
        recipes.load(values)
    assert error.value.exit_code == 2 and len(str(error.value).splitlines()) <= 3


def test_a_teacher_with_other_tokens_is_one_line(keys):
    teacher = Path(keys["teacher_model"])
    inner = json.loads((teacher / "tokenizer.json").read_text())
    words = inner["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (teacher / "tokenizer.json").write_text(json.dumps(inner))
    with pytest.raises(LabError, match=r"teacher_model: .*has another tokenizer: 'a' is token"):
        train.check(recipes.load(keys))
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(LabError, match=r"teacher_model: .*probabilities cannot be compared") as error:
        train.check(recipes.load(keys))
    assert error.value.exit_code == 2


def test_keys_without_effect_are_said(keys, tiny_recipe):
    _, notes = recipes.read(keys | {"lmbda": 1.0, "seq_kd": True, "train_on_prompt": True})
    assert [note.split()[0] for note in notes if "no effect" in note] == ["train_on_prompt:", "seq_kd:"]
    _, notes = recipes.read(tiny_recipe | {"lmbda": 0.1, "teacher_model": "other"})
    assert sum("stage: gkd" in note for note in notes) == 2


@pytest.fixture
def pair(tmp_path):
    """The folders of a student and of a larger teacher, with a vocabulary that makes logits count."""
    folders = []
    for hidden, layers in ((64, 3), (128, 4)):
        sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
        config = LlamaConfig(vocab_size=4000, **sizes, **heads)
        folders.append(tmp_path / str(hidden))
        LlamaForCausalLM(config).save_pretrained(folders[-1])
        make_tokenizer().save_pretrained(folders[-1])
    return tuple(map(str, folders))


@pytest.mark.usefixtures("no_frame_kept")
@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({"beta": 0.5}, 80),
        ({"beta": 1.0}, 80),
        ({"beta": 0.5, "finetuning_type": "full"}, 80),
        # An answer of its own after as long a prompt as there can be.
        ({"beta": 0.5, "lmbda": 1.0, "max_new_tokens": 32}, 1),
    ],
    ids=["mixture", "reverse KL", "full", "written"],
)
def test_predicted_is_measured_with_the_teacher(more, answer, pair, keys, tmp_path):
    student, teacher = pair
    own = {"model_name_or_path": student, "teacher_model": teacher, "per_device_train_batch_size": 4}
    made = recipes.load(keys | own | {"lmbda": 0.0, "cutoff_len": 128, "max_steps": 2, "save_strategy": "no"} | more)
    machine = device.describe()
    args, _ = build.training_args(made, tmp_path / "run", machine)
    model = build.prepare_model(made, build.load_model(made, student, machine), machine)
    # Different from the first token on: what rows share is computed once.
    ids = torch.randint(3, 290, (8, 128), generator=torch.Generator().manual_seed(0)).tolist()
    labels = [[-100] * (128 - answer) + row[128 - answer :] for row in ids]
    rows = dataset.Dataset.from_dict({"input_ids": ids, "labels": labels})
    trainer = build.build_trainer(made, model, args, make_tokenizer(), (rows, None), [])
    plan = library_args.plan(made, machine)
    with cpu.fast_paths(plan), memory.measure_peak_bytes(model, trainer.teacher_model) as peak:
        trainer.train()
    found = memory_needs.needs(made, machine)
    assert found.peak == pytest.approx(peak.bytes, rel=0.1)
    parameters = [memory_needs.sizes(folder).parameters for folder in pair]
    assert found.training.reference_model == parameters[1] > 1.5 * parameters[0]
