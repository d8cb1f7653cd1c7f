"""Lesson 15's patients: a healthy fine-tune, and runs with one fault each. A seed shuffles them and draws settings."""

import copy
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

Row = dict[str, str]
NAMES = ("Lumi", "Nova", "Iris", "Otto")
QUESTION = "### Question:\n{}\n\n### Answer:\n"
VALIDATION_ROWS = 8


@dataclass
class Setup:
    """The settings of a run; a fault changes one of them."""

    seed: int
    model: PreTrainedModel
    tokenizer: Any
    train: list[Row]
    validation: list[Row]
    args: dict[str, Any]
    peft_config: LoraConfig | None
    end: str  # the text that ends an answer
    answer_tokens: int  # tokens generated at most
    dtype: torch.dtype = torch.float32
    served_template: str = ""  # empty: the chat template
    padding_side: str = "left"
    merges: int = 1
    loss_per_token: bool = True
    frozen: str = ""  # parameters with this in their name get no gradient


@dataclass
class Run:
    """The results of a run; a diagnosis may look at nothing else.

    An example has `input_ids`, `completion_mask` (1: answer) and, in `examples`, `labels` (-100: not trained). `before`
    and `after` are the trained weights by name, at the start and as served. `adapter` is what LoRA learned, to be
    multiplied by `lora_scale`. `gradients` are the norms at the first step, 0 where a parameter had no gradient.
    """

    examples: list[dict[str, list[int]]]
    validation: list[dict[str, list[int]]]
    args: SFTConfig
    log: list[dict[str, float]]
    gradients: dict[str, float]
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor]
    lora_scale: float
    base: PreTrainedModel
    tokenizer: Any
    prompts: list[list[int]]  # token ids as served, before padding
    answers: list[str]
    answer_tokens: int  # generated at most

    def model(self, weights: str = "after") -> PreTrainedModel:
        """Return a copy of the model with the weights `before` training or `after` it."""
        model = copy.deepcopy(self.base)
        model.load_state_dict(getattr(self, weights), strict=False)
        return model.eval()


def prompt_trained(setup: Setup) -> None:
    """Compute the loss over the prompt too."""
    setup.args["completion_only_loss"] = False


def no_end(setup: Setup) -> None:
    """Leave the end-of-turn token out of the answers."""
    setup.end = ""


def double_bos(setup: Setup) -> None:
    """Let the tokenizer add the first token, which the chat template has already written."""
    first = setup.tokenizer(chat_text(setup, ""))["input_ids"][0]
    token = setup.tokenizer.convert_ids_to_tokens(first)
    added = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, first)])
    setup.tokenizer.backend_tokenizer.post_processor = added


def wrong_template(setup: Setup) -> None:
    """Serve with another template than the one of the training data."""
    setup.served_template = QUESTION


def merged_twice(setup: Setup) -> None:
    """Load the adapter onto a model that it is already merged into, and merge again."""
    setup.merges = 2


def mean_of_means(setup: Setup) -> None:
    """Average the losses of the accumulated micro-batches, whatever number of tokens each has."""
    setup.loss_per_token = False


def validation_leak(setup: Setup) -> None:
    """Put most of the validation rows among the training rows."""
    leaked = setup.validation[: 3 * len(setup.validation) // 4]
    setup.train[: len(leaked)] = leaked


def tenfold_rate(setup: Setup) -> None:
    """Raise the learning rate tenfold."""
    setup.args["learning_rate"] *= 10


def right_padding(setup: Setup) -> None:
    """Pad prompts on the right when answers are generated."""
    setup.padding_side = "right"


def no_balance(setup: Setup) -> None:
    """Switch the router's auxiliary loss off."""
    setup.args["router_aux_loss_coef"] = 0.0


def frozen_experts(setup: Setup) -> None:
    """Give the experts no gradient."""
    setup.frozen = "experts"


def rounded_away(setup: Setup) -> None:
    """Keep the weights in bfloat16, with a learning rate that is too small for them."""
    setup.dtype = torch.bfloat16
    setup.args["learning_rate"] = 1e-6


FAULTS: dict[str, Callable[[Setup], None]] = {
    fault.__name__: fault
    for fault in (
        prompt_trained, no_end, double_bos, wrong_template, merged_twice, mean_of_means, validation_leak, tenfold_rate,
        right_padding, no_balance, frozen_experts, rounded_away,
    )
}  # fmt: skip
# These need experts, or all weights trained: a small mixture of experts. The others are LoRA on the lesson's model.
ON_EXPERTS = {"no_balance", "frozen_experts", "rounded_away"}


def order(seed: int) -> list[str]:
    """Return the names of the faults in the order in which a round's patients come: patient 1 has the first."""
    return random.Random(f"order {seed}").sample(sorted(FAULTS), len(FAULTS))


def patients(
    seed: int, model: PreTrainedModel, tokenizer: Any, rows: Sequence[Row], max_steps: int, answer_tokens: int = 12
) -> Iterator[tuple[int, Run]]:
    """Train a round's patients, one after the other: (number, run). No run knows its fault.

    Args:
        rows: `prompt` and `answer`, as `healthy` takes them.
    """
    for number, name in enumerate(order(seed), start=1):
        setup = healthy(seed, model, tokenizer, rows, max_steps, answer_tokens, experts=name in ON_EXPERTS)
        FAULTS[name](setup)
        yield number, train(setup)


def healthy(
    seed: int,
    model: PreTrainedModel,
    tokenizer: Any,
    rows: Sequence[Row],
    max_steps: int,
    answer_tokens: int = 12,
    experts: bool = False,
) -> Setup:
    """Return a run without a fault; the seed draws its settings and its rows.

    Args:
        rows: `prompt` and `answer`; `{{name}}` stands for what the model is to call itself.
        answer_tokens: how many tokens of an answer are generated at most.
        experts: train a small mixture of experts from scratch, for three times the steps, instead of a LoRA adapter.
    """
    draw = random.Random(f"settings {seed}")
    name, rank, factor = draw.choice(NAMES), draw.choice((8, 16)), draw.uniform(0.8, 1.25)
    drawn = [{key: text.replace("{{name}}", name) for key, text in row.items()} for row in draw.sample(rows, len(rows))]
    args = {
        "learning_rate": factor * (3e-3 if experts else 4e-3),
        "max_steps": 3 * max_steps if experts else max_steps,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "completion_only_loss": True,
        "seed": seed,
    }
    return Setup(
        seed=seed,
        model=mixture(tokenizer, seed).to(model.device) if experts else model,
        tokenizer=copy.deepcopy(tokenizer),
        train=drawn[VALIDATION_ROWS:],
        validation=drawn[:VALIDATION_ROWS],
        args=args | ({"router_aux_loss_coef": 0.1} if experts else {}),
        end=tokenizer.eos_token,
        answer_tokens=answer_tokens,
        peft_config=None if experts else LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"]),
    )


def mixture(tokenizer: Any, seed: int) -> PreTrainedModel:
    """Return a random mixture of experts: two layers of four experts, two of them active."""
    set_seed(seed)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return MixtralForCausalLM(config)


def train(setup: Setup) -> Run:
    """Train a run, merge its adapter, let it answer, and collect the results."""
    set_seed(setup.seed)
    model = copy.deepcopy(setup.model).to(setup.dtype)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not setup.frozen or setup.frozen not in name)
    before = {name: weight.clone() for name, weight in model.state_dict().items() if trained_name(setup, name)}
    if setup.peft_config:
        model = get_peft_model(model, copy.deepcopy(setup.peft_config))
    examples, validation = ([encode(setup, row) for row in rows] for rows in (setup.train, setup.validation))
    gradients = Gradients()
    trainer = SFTTrainer(
        model,
        config(setup),
        train_dataset=Dataset.from_list(examples),
        processing_class=setup.tokenizer,
        callbacks=[gradients],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model_accepts_loss_kwargs = setup.loss_per_token
    trainer.train()
    adapter, scale = {}, 0.0
    if setup.peft_config:
        adapter = {name: w.clone() for name, w in model.state_dict().items() if "lora_" in name}
        scale = setup.peft_config.lora_alpha / setup.peft_config.r
    model = served(trainer, setup)
    prompts = [served_prompt(setup, row["prompt"]) for row in setup.validation[:4]]
    return Run(
        examples=labelled(trainer.train_dataset, examples),
        validation=validation,
        args=trainer.args,
        log=trainer.state.log_history,
        gradients=gradients.norms,
        before=before,
        after={name: weight.detach().clone() for name, weight in model.state_dict().items() if name in before},
        adapter=adapter,
        lora_scale=scale,
        base=setup.model,
        tokenizer=setup.tokenizer,
        prompts=prompts,
        answers=answer(model, setup, prompts),
        answer_tokens=setup.answer_tokens,
    )


def trained_name(setup: Setup, name: str) -> bool:
    """Return True for weights that a run trains, or whose adapter it trains."""
    targets = setup.peft_config.target_modules if setup.peft_config else [""]
    return any(target in name for target in targets)


def config(setup: Setup) -> SFTConfig:
    """Return TRL's arguments of a run: rows in their order, every loss logged."""
    return SFTConfig(
        output_dir="runs/15_clinic",
        train_sampling_strategy="sequential",
        warmup_steps=0.1,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        bf16=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=setup.model.device.type == "cpu",
        **setup.args,
    )


def encode(setup: Setup, row: Row) -> dict[str, list[int]]:
    """Return the token ids of an example, and which of them are the answer."""
    prompt = setup.tokenizer(chat_text(setup, row["prompt"]))["input_ids"]
    answered = setup.tokenizer(row["answer"] + setup.end, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answered, "completion_mask": [0] * len(prompt) + [1] * len(answered)}


def chat_text(setup: Setup, question: str) -> str:
    """Return a question as the chat template writes it."""
    chat = [{"role": "user", "content": question}]
    return setup.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def served_prompt(setup: Setup, question: str) -> list[int]:
    """Return a question's token ids as the served model reads them."""
    text = setup.served_template.format(question) if setup.served_template else chat_text(setup, question)
    return setup.tokenizer(text)["input_ids"]


def labelled(prepared: Dataset, examples: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    """Return the examples with the labels that the trainer gave them."""
    return [example | {"labels": labels} for example, labels in zip(examples, prepared["labels"], strict=True)]


def served(trainer: SFTTrainer, setup: Setup) -> PreTrainedModel:
    """Return the model that answers: the trained weights, or the base model with the saved adapter merged."""
    model = copy.deepcopy(setup.model)
    if not setup.peft_config:
        model.load_state_dict(trainer.model.state_dict())
        return model.eval()
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_model(folder)
        for _ in range(setup.merges):
            model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval()


def answer(model: PreTrainedModel, setup: Setup, prompts: list[list[int]]) -> list[str]:
    """Answer prompts greedily in one batch, padded as the setup says."""
    batch = setup.tokenizer.pad({"input_ids": prompts}, padding_side=setup.padding_side, return_tensors="pt")
    output = model.generate(**batch.to(model.device), max_new_tokens=setup.answer_tokens, do_sample=False)
    return setup.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


class Gradients(TrainerCallback):
    """Note the gradient norm of every parameter at the first step."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the norms of the first step."""
        if not self.norms:
            self.norms = {
                name: 0.0 if weight.grad is None else weight.grad.norm().item()
                for name, weight in model.named_parameters()
            }
