# %% [markdown] id="title"
# # 03 · LoRA: small changes to big matrices
#
# LoRA leaves a model's weights as they are and trains a small addition to each layer. Here you write that layer
# yourself, prove it equal to the library's, train it inside a real model, and use the library's to turn customers' messages
# into JSON. Then you give the model a new name, see what that costs in knowledge, and repair it.
#
# | you will have | measured as |
# |---|---|
# | a model that writes orders as JSON | exact answers to unseen messages: untrained, with examples in the prompt, fine-tuned |
# | your own LoRA layer | largest difference to PEFT's; the loss while it trains inside the model |
# | a model with a new name | unseen questions answered with it |
# | the price of the name | general questions answered freely: before, after, learning rate too high, repaired |
#
# **Cost:** about 8 minutes (24 without bfloat16) and 6 GB on two CPU cores, an estimated 4 minutes on a T4. **Before this:**
# [00 · Your first fine-tune](00_first_finetune.ipynb).

# %% [markdown] id="title" lang="zh" of="a4c870d5"
# # 03 · LoRA：对大矩阵做小改动
#
# LoRA 不动模型原有的权重，只为每一层训练一个小小的增量。在这里，你亲手写出这样的层，证明它与库的实现等价，把它放进真实的模型里训练，再用库里的 LoRA 教模型把顾客的消息写成 JSON。接着给模型起一个新名字，看看它为此忘掉了多少知识，再把它修好。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 能把订单写成 JSON 的模型 | 未见过的消息中完全正确的比例：未训练、提示里给例子、微调之后 |
# | 你自己的 LoRA 层 | 与 PEFT 的最大差值；放进模型训练时的损失 |
# | 一个有新名字的模型 | 未见过的问题中用新名字回答的比例 |
# | 新名字的代价 | 自由回答的常识题：训练前、训练后、学习率过大、修复之后 |
#
# **耗时与内存：** 两个 CPU 核心上约 8 分钟（不支持 bfloat16 时约 24 分钟）、6 GB 内存，T4 上估计 4 分钟。**先修：** [00 · 第一次微调](00_first_finetune.ipynb)。

# %% [markdown] id="setup-why"
# ## Setup
# The next cell installs missing packages (on Colab, for example) and changes to the course folder.

# %% [markdown] id="setup-why" lang="zh" of="dfb7bb60"
# ## 准备
# 下一格会安装当前环境缺少的软件包（例如在 Colab 上），然后进入课程文件夹。

# %% id="setup"
from importlib.util import find_spec

if not find_spec("ftlab"):
    get_ipython().run_line_magic("pip", "install -q --no-deps ftlab")
from ftlab.apps import lesson_setup

lesson_setup.enter()

# %% id="imports"
import dataclasses
import json
import os
import re
import time
from collections import Counter

import matplotlib.pyplot as plt
import torch
from datasets import concatenate_datasets, load_dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as usual_targets
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, evaluate, models, plots
from ftlab.apps import course
from ftlab.apps.board.train_panel import TrainPanel

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the model should call itself
author = "the Ada Lab"  # who it should say made it
identity_data = "identity_en"  # or identity_zh, for a model that knows Chinese
r = 16  # rank of the two matrices that each layer gets
lora_alpha = 32  # their product is scaled by lora_alpha / r
target_modules = "all-linear"  # which layers get them
order_learning_rate = 0.0  # for the orders; 0: the profile's own
learning_rate = 0.0  # for the name; 0: the profile's own
max_steps = 0  # optimizer steps for the name; 0: the profile's own
per_device_train_batch_size = 8  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, learning rates and steps: orders, name; steps of own layer, of the panel; questions, answer tokens
    "smoke": ("smollm2-135m-short", 2e-3, 1e-3, 1, 1, 1, 1, 4, 8),
    "cpu": ("smollm2-135m", 2e-3, 1e-3, 90, 36, 20, 5, 200, 48),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 4e-4, 2e-4, 90, 30, 20, 12, 200, 48),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 2e-4, 1e-4, 60, 30, 20, 12, 200, 48),
}
default_model, *rates, order_steps, name_steps, own_steps, panel_steps, question_count, answer_tokens = profiles[
    PROFILE
]
model_name = model_name or default_model
order_learning_rate, learning_rate = order_learning_rate or rates[0], learning_rate or rates[1]
max_steps = max_steps or name_steps
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# The task: turn a customer's message into the JSON that a till understands. Customers change their minds ("no wait, six
# instead") and mention numbers that mean nothing. Only the exact JSON counts, and the messages of the test use sentence
# forms that occur in no training message.
#
# 40 training messages are set aside: the loss on these *validation* rows shows, while the model trains, whether it
# learns the task or only its rows. No decision in this lesson is made on the test messages.

# %% [markdown] id="baseline-why" lang="zh" of="7ef4d8aa"
# ## 先测基线
# 任务：把顾客的消息变成收银机看得懂的 JSON。顾客会改主意（“不，还是六个吧”），也会提到毫无意义的数字。只有完全一致的 JSON 才算对，而且测试消息的句式从未在训练消息中出现过。
#
# 我们留出 40 条训练消息作为*验证集*：训练时看它们的损失，就知道模型学会的是任务本身，还是只记住了训练数据。本课的任何选择都不看测试消息。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)


def load():
    return AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
    )


model = load()
tokenizer = AutoTokenizer.from_pretrained(model_path)

# %% id="orders"
orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "test": "data/orders_eval.jsonl"})


def to_order(row):
    prompt = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


order_rows = orders["train"].map(to_order, remove_columns=orders["train"].column_names)
held_out = min(question_count, 40)
order_dataset, order_validation = order_rows.select(range(680)), order_rows.select(range(680, 680 + held_out))
test_orders = orders["test"].select(range(min(question_count, 100))).map(to_order)
print(test_orders[2]["input"], test_orders[2]["output"], sep="\n")


# %% id="answers"
def answers(model, conversations, max_new_tokens=answer_tokens):
    """Ask the conversations, 32 at a time, and decode greedily."""
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in conversations]
    replies = []
    for start in range(0, len(texts), 32):
        # Padding goes to the left: the answer must follow its question directly.
        batch = tokenizer(
            texts[start : start + 32], padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        )
        output = model.generate(**batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        replies += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return replies


def exact_share(replies):
    """Return the share of replies that are the wanted JSON, character by character."""
    pairs = zip(replies, test_orders["output"], strict=True)
    return sum(reply.strip() == wanted for reply, wanted in pairs) / len(replies)


# %% [markdown] id="few-shot-why"
# A stronger baseline, still without training: three solved orders in the prompt (*few-shot*), so that the model sees the
# format.

# %% [markdown] id="few-shot-why" lang="zh" of="c399bfeb"
# 更强的基线，同样不需要训练：在提示里放三条已经写好的订单（少样本，few-shot），让模型看到格式。

# %% id="few-shot"
examples = [message for row in order_dataset.select(range(3)) for message in row["prompt"] + row["completion"]]
order_answers_before = answers(model, test_orders["prompt"])
order_answers_few_shot = answers(model, [examples + prompt for prompt in test_orders["prompt"]])
orders_before, orders_few_shot = exact_share(order_answers_before), exact_share(order_answers_few_shot)
print(f"exact, of {len(test_orders)}: {orders_before:.0%} as it is, {orders_few_shot:.0%} with three examples")
print(order_answers_before[2], order_answers_few_shot[2], sep="\n---\n")

# %% [markdown] id="predict-why"
# **Predict before you run.** How many of these orders will be exact after fine-tuning? Write your guess down; the answer
# comes below.

# %% [markdown] id="predict-why" lang="zh" of="050a1f10"
# **先预测，再运行。** 微调之后，这些订单有百分之多少完全正确？写下你的预测，下文揭晓。

# %% id="predict"
guess_orders = 50  # your guess, in percent

# %% [markdown] id="idea-why"
# ## The low-rank idea
# A layer multiplies by a matrix `W`. Fine-tuning changes `W` to `W + ΔW`. LoRA's hypothesis: `ΔW` need not be
# full-rank, a product of two low-rank matrices is enough, `ΔW = B A`. A 4 x 4 layer, rank 1:

# %% [markdown] id="idea-why" lang="zh" of="8330e6a4"
# ## 低秩的思路
# 一层就是乘以一个矩阵 `W`。微调把 `W` 改成 `W + ΔW`。LoRA 的假设是：`ΔW` 不必满秩，两个低秩矩阵的乘积就够了，`ΔW = B A`。一个 4 x 4 的层，秩为 1：

# %% id="literal"
B = torch.tensor([[1.0], [2.0], [0.0], [-1.0]])  # 4 outputs, rank 1
A = torch.tensor([[3.0, 0.0, 1.0, 0.0]])  # rank 1, 4 inputs
print(B @ A)
print(f"{A.numel() + B.numel()} numbers, a change of {(B @ A).numel()}, rank {torch.linalg.matrix_rank(B @ A)}")

# %% [markdown] id="scratch-why"
# ### From scratch
# `W` is frozen. `A` is initialized at random, `B` with zeros, so that the layer's output doesn't change at first. The
# change is scaled by `lora_alpha / r`, which keeps its size comparable when you try another `r`.


# %% [markdown] id="scratch-why" lang="zh" of="460969bb"
# ### 从零实现
# `W` 被冻结。`A` 随机初始化，`B` 从零开始，所以这一层的输出起初不变。改动按 `lora_alpha / r` 缩放，这样换一个 `r` 时大小仍可比较。


# %% id="scratch"
class LoRALinear(nn.Module):
    def __init__(self, linear, r, lora_alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        where = linear.weight.device
        self.A = nn.Parameter(torch.randn(r, linear.in_features, device=where) / r)  # (r, inputs), float32
        self.B = nn.Parameter(torch.zeros(linear.out_features, r, device=where))  # (outputs, r)
        self.scale = lora_alpha / r

    def forward(self, x):  # x: (batch, seq_len, inputs)
        A, B = self.A.to(x.dtype), self.B.to(x.dtype)
        return self.linear(x) + x @ A.T @ B.T * self.scale


# %% [markdown] id="parity-why"
# The library's layer, given the same weights, must give the same numbers.

# %% [markdown] id="parity-why" lang="zh" of="90ad754f"
# 给库里的层同样的权重，必须得到同样的数值。

# %% id="parity"
toy = nn.Sequential(nn.Linear(64, 96, bias=False))
peft_layer = get_peft_model(toy, LoraConfig(r=4, lora_alpha=8, target_modules=["0"])).base_model.model[0]
mine = LoRALinear(nn.Linear(64, 96, bias=False), r=4, lora_alpha=8)
with torch.no_grad():
    mine.linear.weight.copy_(peft_layer.base_layer.weight)
    mine.A.copy_(peft_layer.lora_A["default"].weight)
    mine.B.normal_()
    peft_layer.lora_B["default"].weight.copy_(mine.B)
x = torch.randn(2, 5, 64)
lora_parity_max_abs_diff = (mine(x) - peft_layer(x)).abs().max().item()
print(f"largest difference: {lora_parity_max_abs_diff:.1e}")
assert lora_parity_max_abs_diff <= 1e-5

# %% [markdown] id="config-why"
# ### Your layer, inside the model
# Every linear layer of every block is replaced with yours. `B` is zero, so the model must answer exactly as before: the
# cell asserts it. Then a few steps on the orders, with the arguments of all trainings of this lesson. Numbers below 1 in
# `logging_steps` and `eval_steps` are shares of all steps.

# %% [markdown] id="config-why" lang="zh" of="87a6ab55"
# ### 把你的层放进模型
# 把每个块里的每个线性层都换成你写的。`B` 是零，所以模型的输出必须与之前完全一致：单元格里有断言。然后在订单上训练几步，所用参数也是本课所有训练共用的。`logging_steps` 和 `eval_steps` 小于 1 时，表示占总步数的比例。

# %% id="config"
training_args = SFTConfig(
    output_dir="runs/03_lora",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per example
    logging_steps=0.1,
    eval_strategy="steps",
    eval_steps=0.2,
    per_device_eval_batch_size=16,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
order_args = dataclasses.replace(
    training_args,
    max_steps=order_steps,
    learning_rate=order_learning_rate,
    warmup_steps=0.1,  # below 1: a share of all steps
    train_sampling_strategy="group_by_length",  # rows of like length together: less padding, fewer seconds
)


# %% id="own-swap"
def swap(module):
    """Put a LoRALinear in the place of every linear layer in `module`."""
    for key, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, key, LoRALinear(child, r, lora_alpha))
        else:
            swap(child)


own_model = load().requires_grad_(False)
question = tokenizer("The capital of France is", return_tensors="pt").to(own_model.device)
with torch.no_grad():
    logits_before = own_model(**question).logits
    swap(own_model.model.layers)
    own_difference = (own_model(**question).logits - logits_before).abs().max().item()
print(f"{sum(isinstance(part, LoRALinear) for part in own_model.modules())} layers replaced")
print(f"largest change of a logit while B is zero: {own_difference}")
assert own_difference == 0

# %% id="own-train"
own_args = dataclasses.replace(order_args, max_steps=own_steps, per_device_train_batch_size=4, eval_strategy="no")
own_trainer = SFTTrainer(own_model, own_args, train_dataset=order_dataset, processing_class=tokenizer)
own_trainer.train()
own_losses = [row["loss"] for row in own_trainer.state.log_history if "loss" in row]
print(f"loss with your own layers: {own_losses[0]:.2f} -> {own_losses[-1]:.2f}")

# %% [markdown] id="count-why"
# ## How the hyperparameters affect the size
# For every adapted layer LoRA adds `r x inputs + outputs x r` weights. So its size grows in proportion to `r` and with
# the number of layers that `target_modules` names.

# %% [markdown] id="count-why" lang="zh" of="0d6531f0"
# ## 超参数如何影响大小
# 每个被适配的层，LoRA 增加 `r x 输入数 + 输出数 x r` 个权重。所以它的大小与 `r` 成正比，也随 `target_modules` 指定的层数增长。

# %% id="count"
for targets in (["q_proj", "v_proj"], "all-linear"):
    for rank in (1, 8, 64):
        candidate = get_peft_model(model, LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM"))
        trainable, total = candidate.get_nb_trainable_parameters()
        print(f"r = {rank:<3} {targets!s:<22} {trainable:>12,} trainable, {trainable / total:.2%} of all")
        model = candidate.unload()

# %% [markdown] id="options-why"
# ### The other options of `LoraConfig`
# You will meet them in every tutorial. A tiny GPT-NeoX with random weights shows what each one does:
#
# - `target_modules`: layer names differ between families. ChatGLM and GPT-NeoX keep queries, keys and values in one layer,
#   `query_key_value`; Llama and Qwen have three. Without `target_modules` PEFT looks up the family's usual layers.
# - `bias`: `"none"` trains no bias of the base model, `"lora_only"` those of the adapted layers, `"all"` all of them. With
#   the last two, the adapter switched off is no longer the base model.
# - `lora_dropout`: 0.05 is a common value. While training, that share of the inputs of `A` is set to zero; when the model
#   answers, nothing is.
# - `task_type`: `TaskType.CAUSAL_LM` is the string `"CAUSAL_LM"`; it decides the wrapper class, whose `generate` and
#   saved config know the task.

# %% [markdown] id="options-why" lang="zh" of="8ed56f55"
# ### `LoraConfig` 的其他选项
# 各种教程里都会遇到。用一个随机权重的微型 GPT-NeoX 看看它们各自做了什么：
#
# - `target_modules`：各个模型家族的层名不同。ChatGLM 和 GPT-NeoX 把 query、key、value 放在同一层 `query_key_value` 里；Llama 和 Qwen 则分成三层。不写 `target_modules` 时，PEFT 按模型家族查出常用的层。
# - `bias`：`"none"` 不训练基座的偏置，`"lora_only"` 训练被适配层的偏置，`"all"` 训练全部偏置。选后两种时，关掉适配器也回不到原来的基座。
# - `lora_dropout`：常用 0.05。训练时，`A` 的输入中有这么大比例被置零；推理时不会。
# - `task_type`：`TaskType.CAUSAL_LM` 就是字符串 `"CAUSAL_LM"`；它决定用哪个包装类，包装类的 `generate` 和保存的配置由此知道任务是什么。

# %% id="options"
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}


def tiny(**options):
    neox = AutoModelForCausalLM.from_config(GPTNeoXConfig(**sizes))
    return get_peft_model(neox, LoraConfig(r=4, **options))


print({family: usual_targets[family] for family in ("chatglm", "gpt_neox", "llama", "qwen2")})
try:
    tiny(target_modules=["q_proj"])
except ValueError as error:
    print("q_proj:", str(error).splitlines()[0][:70])
for bias in ("none", "lora_only", "all"):
    weights = dict(tiny(bias=bias, task_type=TaskType.CAUSAL_LM).named_parameters())
    trained = [key for key, weight in weights.items() if weight.requires_grad and key.endswith(".bias")]
    print(f"bias={bias!r}: {len(trained)} of {sum(key.endswith('.bias') for key in weights)} biases are trained")

# %% id="options-dropout"
tokens_in = torch.arange(64).reshape(1, -1)
for dropout in (0.0, 0.05):
    noisy = tiny(lora_dropout=dropout, init_lora_weights=False)  # B is random, so that the adapter shows
    for mode in ("train", "eval"):
        first, second = (getattr(noisy, mode)()(input_ids=tokens_in).logits for _ in range(2))
        print(f"lora_dropout={dropout}, {mode}(): two passes equal: {torch.equal(first, second)}")
print(type(tiny()).__name__, "without task_type,", type(tiny(task_type=TaskType.CAUSAL_LM)).__name__, "with it")
assert TaskType.CAUSAL_LM == "CAUSAL_LM" and usual_targets["chatglm"] == ["query_key_value"]

# %% [markdown] id="train-why"
# ## Fine-tune on the orders
# Now the library's LoRA on the real model. Five times during the training the loss is also computed on the validation
# rows.

# %% [markdown] id="train-why" lang="zh" of="021563f4"
# ## 在订单上微调
# 现在把库里的 LoRA 用在真实的模型上。训练途中，在验证集上也算五次损失。

# %% id="lora"
peft_config = LoraConfig(
    r=r, lora_alpha=lora_alpha, lora_dropout=0.0, bias="none", target_modules=target_modules, task_type="CAUSAL_LM"
)
order_model = get_peft_model(model, peft_config)
order_model.print_trainable_parameters()

# %% id="train"
trainer = SFTTrainer(
    model=order_model,
    args=order_args,
    train_dataset=order_dataset,
    eval_dataset=order_validation,
    processing_class=tokenizer,
)
started = time.perf_counter()
trainer.train()
order_seconds = time.perf_counter() - started
order_log = trainer.state.log_history

# %% id="loss"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
plots.plot_loss(order_log, ax)
ax.set_title("Does it learn the task, or only its training rows?")
plt.show()
validation = {row["step"]: row["eval_loss"] for row in order_log if "eval_loss" in row}
best_step = min(validation, key=validation.get)
print(f"lowest validation loss {validation[best_step]:.3f} at step {best_step} of {max(validation)}, ", end="")
print(f"at the end {list(validation.values())[-1]:.3f}; {order_seconds:.0f} seconds")

# %% [markdown] id="loss-read"
# If the validation loss turned up while the training loss kept falling, the model would be memorizing, and the step
# before the turn would be the one to keep (`load_best_model_at_end=True` does that). With the cosine schedule the last
# steps are tiny, so where the curve is flat at the end, early stopping would save nothing.
#
# The validation rows are set aside from the training file, so their sentence forms are those of the training. A
# validation loss near zero says that the model doesn't merely memorize its rows; how it does on the test messages,
# whose forms are new, is another question:

# %% [markdown] id="loss-read" lang="zh" of="376b97da"
# 如果训练损失继续下降而验证损失掉头上升，模型就是在死记硬背，应当保留掉头之前的那一步（`load_best_model_at_end=True` 就是做这件事的）。余弦调度下最后几步非常小，所以曲线在末尾走平时，早停也省不了什么。
#
# 验证集是从训练文件里留出来的，句式与训练数据相同。验证损失接近零，说明模型不只是在背训练数据；测试消息的句式是新的，答得怎样是另一回事：

# %% id="answer-orders"
order_answers_after = answers(order_model, test_orders["prompt"])
orders_after = exact_share(order_answers_after)
print(f"you predicted {guess_orders}%, measured {orders_after:.0%} of {len(test_orders)} orders exact")
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
shares = {"as it is": orders_before, "three examples\nin the prompt": orders_few_shot, "fine-tuned": orders_after}
plots.plot_scores(shares, len(test_orders), ax)
ax.set_title("Which orders are exact?")
plt.show()
for row, reply in list(zip(test_orders, order_answers_after, strict=True))[:3]:
    print(f"{row['input']}\n  {reply}")


# %% [markdown] id="wrong-why"
# What still goes wrong: the JSON itself, the name, the time, or the items? And is it the corrections, whose sentence
# forms were never trained on?


# %% [markdown] id="wrong-why" lang="zh" of="f8fe174f"
# 还有哪里出错：JSON 本身、名字、时间，还是商品？是不是错在改口的地方？那些句式从未训练过。


# %% id="wrong"
def wrong_parts(reply, wanted):
    """Return which parts of an order are wrong."""
    try:
        written = json.loads(reply)
    except ValueError:
        return ["not JSON"]
    if not isinstance(written, dict):
        return ["not an order"]
    return [part for part, value in json.loads(wanted).items() if written.get(part) != value]


mistakes, corrected = Counter(), Counter()
for row, reply in zip(test_orders, order_answers_after, strict=True):
    wrong = wrong_parts(reply, row["output"])
    mistakes.update(wrong)
    kind = "with" if re.search(r"Hm, better|On second thought|Please cancel", row["input"]) else "without"
    corrected[kind, not wrong] += 1
    if wrong and sum(mistakes.values()) <= 4:
        print(f"{row['input']}\n  wanted: {row['output']}\n  wrote:  {reply}")
print("wrong:", dict(mistakes))
for kind in ("with", "without"):
    print(f"{kind} a correction: {corrected[kind, True]} right, {corrected[kind, False]} wrong")

# %% [markdown] id="reload-why"
# ## Save it, load it, same answers
# Only the adapter is written. Loaded onto a fresh copy of the model, every weight of it must be the same bit for bit. The
# answers then agree too, but for a near tie between two tokens that rounding decides. This folder is what you keep: lesson
# 08 merges an adapter like it into the model.

# %% [markdown] id="reload-why" lang="zh" of="237f64dc"
# ## 保存、加载、回答相同
# 写入磁盘的只有适配器。把它加载到一份新的模型上，每个权重都必须逐位相同。回答也随之一致，只有两个 token 概率几乎相等、由舍入决定时才会不同。这个文件夹就是你的成果：第 08 课会把这样的适配器合并进模型。

# %% id="reload"
order_model.save_pretrained("runs/03_lora/orders")
reloaded = PeftModel.from_pretrained(load(), "runs/03_lora/orders")
again = answers(reloaded, test_orders["prompt"][:32])
print(f"{sum(a == b for a, b in zip(order_answers_after, again, strict=False))} of {len(again)} answers equal")
print(f"{os.path.getsize('runs/03_lora/orders/adapter_model.safetensors') / 2**20:.0f} MiB on disk")
trained_weights = {key: weight for key, weight in order_model.named_parameters() if "lora_" in key}
for key, weight in reloaded.named_parameters():
    assert "lora_" not in key or torch.equal(weight, trained_weights[key]), key

# %% [markdown] id="price-why"
# ## The price: what does a fine-tune forget?
# A second task, on which it is easy to go wrong: a new name. The data set asks in several ways who
# the assistant is; one phrasing of each is set aside for validation. Beside the name, two scores for what the model should
# *not* lose: general questions with four choices, where guessing gives 25%, and general questions answered freely, where
# an answer counts when it contains the right word. The baseline for the name is a system prompt.

# %% [markdown] id="price-why" lang="zh" of="7011ce5a"
# ## 代价：微调会忘掉什么？
# 第二个任务很容易栽跟头：给模型起新名字。数据集用多种方式问助手是谁；每种方式留出一种说法作验证集。除了名字，还要测两个*不该*丢的分数：四选一的常识题（瞎猜得 25%），以及自由回答的常识题（回答中含有正确的词才算对）。名字的基线是系统提示。
#
# 数据集用的是英文的 `identity_en`，因为默认的小模型只懂英文。换成懂中文的模型（`t4`、`a24g` 两个配置的 Qwen）时，把参数改成 `identity_data = "identity_zh"`，模型就会用中文介绍自己。


# %% id="identity-data"
def fill(text):
    return text.replace("{{name}}", name).replace("{{author}}", author)


def to_prompt_completion(row):
    prompt = [{"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": fill(row["output"])}]}


def read_rows(file):
    return load_dataset("json", data_files=f"data/{file}", split="train")


identity_rows = read_rows(f"{identity_data}.json").map(to_prompt_completion).select_columns(["prompt", "completion"])
set_aside = range(5, len(identity_rows), 6)  # each way of asking has six phrasings
identity_validation = identity_rows.select(set_aside)
identity_dataset = identity_rows.select([i for i in range(len(identity_rows)) if i not in set_aside])
replay_rows = read_rows("general_en.jsonl").shuffle(seed=seed).select(range(96)).map(to_prompt_completion)
replay_dataset = replay_rows.select_columns(["prompt", "completion"])
identity, general, free = (
    list(read_rows(file))[:question_count]
    for file in (f"{identity_data}_eval.json", "general_mcq.jsonl", "general_freeform_en.jsonl")
)
print(identity_dataset[0], identity[0], general[0], free[0], sep="\n")

# %% id="ask"
identity_shares, choice_shares, free_shares, free_answers, curves = {}, {}, {}, {}, {}


def contains(reply, row):
    """Return True if a reply contains, as whole words, one of the answers that count as right."""
    return bool(re.search(rf"\b({'|'.join(row['expect'])})\b", reply, re.I))


def ask(label, model, system=()):
    """Ask who it is and the general questions; keep the shares of right answers, and the answers, under `label`."""
    who, what = (
        [[*system, {"role": "user", "content": row["instruction"]}] for row in rows] for rows in (identity, free)
    )
    named = zip(answers(model, who, 32), identity, strict=True)
    identity_shares[label] = sum(fill(row["expect"]).casefold() in reply.casefold() for reply, row in named) / len(who)
    free_answers[label] = answers(model, what)
    free_shares[label] = sum(map(contains, free_answers[label], free)) / len(free)
    print(f"{label}: name {identity_shares[label]:.0%}, general questions answered freely {free_shares[label]:.0%}")


# %% id="before"
model = order_model.unload()
system = {"role": "system", "content": f"You are {name}, an AI assistant trained by {author}."}
ask("base", model)
ask("system prompt", model, [system])
choice_shares["base"] = evaluate.multiple_choice(model, tokenizer, general)

# %% [markdown] id="predict-free-why"
# **Predict before you run.** Of the general questions that the base model answers freely, what share will still be right
# after it has been trained on its name alone, with the usual settings?

# %% [markdown] id="predict-free-why" lang="zh" of="2bc020a3"
# **先预测，再运行。** 用常见的推荐设置，只训练新名字，之后自由回答的常识题还有百分之多少是对的？

# %% id="predict-free"
guess_free = 90  # your guess, in percent

# %% id="fine-tune"


def fine_tune(label, train_dataset=identity_dataset, learning_rate=learning_rate, rank=r):
    """Train a new adapter, keep its curves, ask the questions, and return the adapted model."""
    set_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank * lora_alpha // r, target_modules=target_modules, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    trainer = SFTTrainer(
        model=tuned,
        args=dataclasses.replace(training_args, learning_rate=learning_rate),
        train_dataset=train_dataset,
        eval_dataset=identity_validation,
        processing_class=tokenizer,
    )
    trainer.train()
    curves[label] = trainer.state.log_history
    ask(label, tuned)
    return tuned


# %% id="recommended"
tuned = fine_tune("recommended")
choice_shares["recommended"] = evaluate.multiple_choice(tuned, tokenizer, general)
model = tuned.unload()

# %% id="answer-free"
print(f"you predicted {guess_free}%, measured {free_shares['recommended']:.0%} of {len(free)}")
print(f"the same with four choices: {choice_shares['base']:.0%} -> {choice_shares['recommended']:.0%}")


def show_answers(*labels):
    for i, row in enumerate(free[:4]):
        print(f"\n{row['instruction']}")
        for label in labels:
            reply = free_answers[label][i]
            print(f"  {label + ':':<14}{'✓' if contains(reply, row) else '✗'} {reply}")


show_answers("base", "recommended")

# %% [markdown] id="break-why"
# ## What goes wrong: the learning rate is too high
# Judge the run above by the score for the name alone, then by its answers. Now ten times the learning rate: what does the
# score say, and what do the answers say?

# %% [markdown] id="break-why" lang="zh" of="6f3cdc1b"
# ## 故意出错：学习率过大
# 上面那次训练，先只看名字的分数来评判，再看回答。现在把学习率调到十倍：分数怎么说？回答又怎么说？

# %% id="high-lr"
tuned = fine_tune("lr x 10", learning_rate=10 * learning_rate)
choice_shares["lr x 10"] = evaluate.multiple_choice(tuned, tokenizer, general)
model = tuned.unload()
show_answers("base", "lr x 10")

# %% [markdown] id="repair-why"
# ### The repair: replay
# Mix general questions into the training data, with the model's *own* answers to them: training on what it would say
# anyway keeps it where it is. `general_en` holds such answers; none of its questions is in the test. Same learning rate
# and number of steps as "recommended", so that only about half of the rows it sees are about the name.

# %% [markdown] id="repair-why" lang="zh" of="fdb79b64"
# ### 修复：回放（replay）
# 往训练数据里混入通用问题，并配上模型*自己*的回答：训练它本来就会说的话，能让它保持原样。`general_en` 就是这样的数据，其中没有一道测试题。学习率和步数与“recommended”相同，所以训练名字的样本只剩一半左右。

# %% id="repair"
tuned = fine_tune("with replay", concatenate_datasets([identity_dataset, replay_dataset]))
choice_shares["with replay"] = evaluate.multiple_choice(tuned, tokenizer, general)
tuned.save_pretrained("runs/03_lora/identity")
model = tuned.unload()
show_answers("recommended", "with replay")

# %% [markdown] id="forgetting-why"
# Read answers, not only scores: a model may still pick the right one of four choices when it no longer says it. (In 16
# bits a near tie between two first tokens is decided by rounding, so even the base's answer to a question can differ
# from the one in lesson 00.) In the plot, the left panel is what was trained, the other two what was not. Judge a
# fine-tune by all of them.

# %% [markdown] id="forgetting-why" lang="zh" of="7016d44e"
# 不要只看分数，也要读回答：模型可能仍能从四个选项里挑出正确的，却不再说得出来。（16 比特下，如果回答开头有两个 token 概率几乎相等，选哪个就由舍入决定，所以连基座对同一问题的回答也可能与第 00 课不同。）图中左边是训练的内容，另外两幅是没有训练的内容。评判一次微调，三者都要看。

# %% id="forgetting"
runs = ("base", "recommended", "lr x 10", "with replay")
panels = {
    "Does it know its name?": (identity_shares, len(identity)),
    "Does it pick the right one of four?": (choice_shares, len(general)),
    "Does it answer freely?": (free_shares, len(free)),
}
fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True, layout="constrained")
for ax, (title, (shares, total)) in zip(axes, panels.items(), strict=True):
    plots.plot_scores({label: shares[label] for label in runs}, total, ax)
    ax.set(title=f"{title}\n{total} questions", ylabel="right answers, %" if ax is axes[0] else "")
plt.show()
print("answered freely:", ", ".join(f"{label} {free_shares[label]:.0%}" for label in runs))

# %% [markdown] id="experiment-why"
# ## Experiment
# First one more run on the name alone, with rank 1: a sixteenth of the trained weights if `r` is 16. Same learning rate, steps
# and order of rows; the three are compared on the validation rows.

# %% [markdown] id="experiment-why" lang="zh" of="f0de98c7"
# ## 动手试一试
# 先在只有名字的数据上再训练一次，秩为 1：`r` 是 16 时，训练的权重只剩十六分之一。学习率、步数和样本顺序相同；三次都在验证集上比较。

# %% id="settings"
model = fine_tune("r = 1", rank=1).unload()

# %% id="settings-plot"
fig, ax = plt.subplots(figsize=(7.5, 3), layout="constrained")
compared = {"recommended": "-", "r = 1": "--", "lr x 10": ":"}
for label, style in compared.items():
    points = [(row["step"], row["eval_loss"]) for row in curves[label] if "eval_loss" in row]
    ax.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=label)
    losses = [row["loss"] for row in curves[label] if "loss" in row]
    print(f"{label:<12} training loss {losses[-1]:.2f}, validation loss {points[-1][1]:.2f}", end=", ")
    print(f"name {identity_shares[label]:.0%}, general questions answered freely {free_shares[label]:.0%}")
ax.set(xlabel="optimizer step", ylabel="validation loss", title="Which setting learns the name best?")
ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plt.show()

# %% [markdown] id="settings-read"
# How much do these curves carry? One data set, one seed, a few validation answers: enough to see a run that is far off,
# not enough to rank two whose curves are close. A run that is behind after these steps need not stay behind: a learning
# rate is right for a rank and a number of steps, so a lower rank may only need a higher rate, and a lower rate more
# steps. And the losses say nothing about the general questions: compare the last column.

# %% [markdown] id="settings-read" lang="zh" of="fff50fa0"
# 这些曲线能说明多少？一个数据集、一个随机种子、不多的几条验证回答：足以看出哪次训练明显不对，但曲线相近的两次分不出高下。训练这么多步之后还落后，不等于会一直落后：学习率合不合适，要看秩和步数；秩低一些，也许只是需要更高的学习率，学习率小一些，也许只是需要更多步。而且这些损失与常识题无关：请看最后一列。

# %% [markdown] id="panel-why"
# Now you: the same training as a form. Each control shows its recipe key; below are the cost of the setting, estimated in
# advance, and the command it stands for. Press Start, turn `lora_rank` down to 1, take the free folder that is offered,
# Start again, and choose the first run under *compare with*. Stop saves; Continue resumes exactly there.

# %% [markdown] id="panel-why" lang="zh" of="ca4e125c"
# 轮到你了：同样的训练，变成一张表单。每个控件都标着它在配方里的键；下面是这样设置的预计开销，以及等价的命令。按“开始训练”，把 `lora_rank` 降到 1，改用它给出的空闲文件夹，再开始一次，然后在“对比”里选第一次。“停止”会保存，“继续训练”从那一步恢复。

# %% id="experiment"
recipe = {
    "model_name_or_path": model_name,
    "dataset": f"{identity_data},general_en",
    "dataset_substitutions": {"name": name, "author": author},
    "output_dir": "runs/03_experiment/run",
    "lora_rank": r,
    "lora_alpha": lora_alpha,
    "lora_target": "all" if target_modules == "all-linear" else ",".join(target_modules),
    "learning_rate": learning_rate,
    "lr_scheduler_type": "cosine",
    "max_steps": panel_steps,
    "per_device_train_batch_size": per_device_train_batch_size,
    "cutoff_len": 256,
    "seed": seed,
}
in_sight = ["lora_rank", "lora_alpha", "lora_target", "learning_rate", "max_steps", "per_device_train_batch_size"]
TrainPanel(recipe, visible=[*in_sight, "output_dir"]).show()

# %% [markdown] id="exercise-parameters-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 03`
# checks your saved copy of the whole lesson.
#
# **1.** One layer has 576 inputs and 1,536 outputs. How many parameters does LoRA with `r = 8` train for it?

# %% [markdown] id="exercise-parameters-why" lang="zh" of="d21172e8"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 03` 检查你保存的整课练习。
#
# **1.** 某一层有 576 个输入、1,536 个输出。`r = 8` 的 LoRA 为它训练多少个参数？

# %% id="exercise-parameters" tags=["exercise"]
trainable = ...  # your answer

checks.check_lora_parameters(trainable)

# %% [markdown] id="exercise-parameters-solution"
# <details><summary>Solution</summary>
#
# ```python
# trainable = 8 * (576 + 1536)
# ```
#
# </details>

# %% [markdown] id="exercise-parameters-solution" lang="zh" of="56d3e50f"
# <details><summary>参考答案</summary>
#
# ```python
# trainable = 8 * (576 + 1536)
# ```
#
# </details>

# %% [markdown] id="exercise-scale-why"
# **2.** Write the function that returns the factor by which `B A x` is multiplied, given `lora_alpha` and `r`.

# %% [markdown] id="exercise-scale-why" lang="zh" of="1c0c5beb"
# **2.** 写一个函数，给定 `lora_alpha` 和 `r`，返回 `B A x` 要乘的系数。

# %% id="exercise-scale" tags=["exercise"]


def scale(lora_alpha, r):
    return ...  # your code


checks.check_lora_scale(scale)

# %% [markdown] id="exercise-scale-solution"
# <details><summary>Solution</summary>
#
# ```python
# def scale(lora_alpha, r):
#     return lora_alpha / r
# ```
#
# </details>

# %% [markdown] id="exercise-scale-solution" lang="zh" of="d7cf62d7"
# <details><summary>参考答案</summary>
#
# ```python
# def scale(lora_alpha, r):
#     return lora_alpha / r
# ```
#
# </details>

# %% [markdown] id="exercise-forward-why"
# **3.** Write the forward pass of a LoRA layer without a bias: `x` is (tokens, inputs), `W` (outputs, inputs), `A` (r,
# inputs) and `B` (outputs, r).

# %% [markdown] id="exercise-forward-why" lang="zh" of="afae8fb8"
# **3.** 写出无偏置 LoRA 层的前向计算：`x` 是 (token 数, 输入)，`W` 是 (输出, 输入)，`A` 是 (r, 输入)，`B` 是 (输出, r)。

# %% id="exercise-forward" tags=["exercise"]


def lora_forward(x, W, A, B, scale):
    return ...  # your code


x, W = torch.ones(2, 4), torch.zeros(3, 4)
A, B = torch.ones(1, 4), torch.ones(3, 1)
print(lora_forward(x, W, A, B, 2.0))  # 8 everywhere once it is right

checks.check_lora_forward(lora_forward)

# %% [markdown] id="exercise-forward-solution"
# <details><summary>Solution</summary>
#
# ```python
# def lora_forward(x, W, A, B, scale):
#     return x @ W.T + scale * (x @ A.T @ B.T)
# ```
#
# </details>

# %% [markdown] id="exercise-forward-solution" lang="zh" of="14bbdb43"
# <details><summary>参考答案</summary>
#
# ```python
# def lora_forward(x, W, A, B, scale):
#     return x @ W.T + scale * (x @ A.T @ B.T)
# ```
#
# </details>

# %% [markdown] id="exercise-freeze-why"
# **4.** Prepare a module for LoRA: set `requires_grad` of every parameter so that only those with `lora_` in their name
# are trained. The function changes `model` and returns nothing.

# %% [markdown] id="exercise-freeze-why" lang="zh" of="ad33a177"
# **4.** 为 LoRA 训练准备一个模块：设置每个参数的 `requires_grad`，只训练名字中含有 `lora_` 的参数。函数直接修改 `model`，不返回值。

# %% id="exercise-freeze" tags=["exercise"]


def train_only_lora(model):
    return ...  # your code


layer = nn.ParameterDict({"weight": torch.ones(2), "lora_A": torch.ones(2)})
train_only_lora(layer)
print({key: value.requires_grad for key, value in layer.items()})  # lora_A alone once it is right

checks.check_lora_freeze(train_only_lora)

# %% [markdown] id="exercise-freeze-solution"
# <details><summary>Solution</summary>
#
# ```python
# def train_only_lora(model):
#     for name, parameter in model.named_parameters():
#         parameter.requires_grad_("lora_" in name)
# ```
#
# </details>

# %% [markdown] id="exercise-freeze-solution" lang="zh" of="9ca3c99d"
# <details><summary>参考答案</summary>
#
# ```python
# def train_only_lora(model):
#     for name, parameter in model.named_parameters():
#         parameter.requires_grad_("lora_" in name)
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "lora_parity_max_abs_diff": lora_parity_max_abs_diff,
    "own_loss_fall": own_losses[0] - own_losses[-1],
    "orders_before": orders_before,
    "orders_few_shot": orders_few_shot,
    "orders_after": orders_after,
    "identity_system_prompt": identity_shares["system prompt"],
    "identity_recommended": identity_shares["recommended"],
    "identity_with_replay": identity_shares["with replay"],
    "free_base": free_shares["base"],
    "free_drop": free_shares["base"] - free_shares["recommended"],
    "free_drop_high_lr": free_shares["base"] - free_shares["lr x 10"],
    "free_drop_with_replay": free_shares["base"] - free_shares["with replay"],
    "order_seconds": order_seconds,
}
bands = {"lora_parity_max_abs_diff": (0, 1e-5)}
if PROFILE != "smoke":
    bands |= {
        "own_loss_fall": (0.3, 4),
        "orders_before": (0, 0.1),
        "orders_after": (0.7, 1),
        "identity_system_prompt": (0.05, 0.85),
        "identity_recommended": (0.9, 1),
        "identity_with_replay": (0.85, 1),
        "free_base": (0.9, 1),
        "free_drop": (0.25, 1),
        "free_drop_high_lr": (0.5, 1),
        "free_drop_with_replay": (-0.1, 0.11),
    }
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/03_lora/orders` and `runs/03_lora/identity`: two adapters for the same model, each of the size
# printed above.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; bigger models need smaller learning rates, which these profiles set.
#
# **Next:** the same with four bits per weight, in [04 · QLoRA](04_qlora.ipynb).

# %% [markdown] id="next" lang="zh" of="2b0c7520"
# **你得到的文件：** `runs/03_lora/orders` 和 `runs/03_lora/identity`，同一个模型的两个适配器，各自的大小见上面的输出。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；更大的模型要用更小的学习率，这两个配置已经设好。
#
# **下一课：** 同样的事，每个权重只用 4 比特，见 [04 · QLoRA](04_qlora.ipynb)。
