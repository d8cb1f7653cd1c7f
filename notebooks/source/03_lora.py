# %% [markdown] id="title"
# # 03 · LoRA: small changes to big matrices
#
# LoRA trains about one weight in thirty and leaves the rest alone. Here you build it in ten lines, prove your version
# equal to the library's, use the library's to teach a model a new identity, and measure what it cost: not only seconds,
# but what the model *forgot*.
#
# | you will have | measured as |
# |---|---|
# | your own LoRA layer | largest difference to PEFT's, same weights |
# | a model with a new name | unseen questions answered with it, before and after |
# | the price | general questions, four choices or answered freely: before, after, after training on the name alone or too hard |
# | a model that writes orders as JSON | exact answers to unseen messages, before and after |
#
# **Cost:** about 5 minutes and 6 GB on two CPU cores, 3 minutes on a T4. **Before this:**
# [00 · Your first fine-tune](00_first_finetune.ipynb).

# %% [markdown] id="title" lang="zh" of="89467045"
# # 03 · LoRA：对大矩阵做小改动
#
# LoRA 只训练约三十分之一的权重，其余不动。在这里，你用十行代码造出它，证明你的版本与库的版本相等，再用库的版本教模型一个新身份，并测量代价：不只是秒数，还有模型*忘掉*了什么。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 你自己的 LoRA 层 | 同样权重下与 PEFT 的最大差值 |
# | 一个有新名字的模型 | 未见过的问题中用新名字回答的比例，训练前与训练后 |
# | 代价 | 常识（四选一与自由回答）：训练前、训练后、只用身份数据训练之后、学习率过大之后 |
# | 能把订单写成 JSON 的模型 | 未见过的消息中完全正确的比例，训练前与训练后 |
#
# **耗时与内存：** 两个 CPU 核心上约 5 分钟、6 GB 内存，T4 上约 3 分钟。**先修：** [00 · 第一次微调](00_first_finetune.ipynb)。

# %% [markdown] id="setup-why"
# ## Setup
# On Colab the next cell installs the course; everywhere else it only steps up to the course folder.

# %% [markdown] id="setup-why" lang="zh" of="91d5b1e4"
# ## 准备
# 在 Colab 上，下一格会安装课程；在其他地方它只是进入课程文件夹。

# %% id="setup"
import os
import subprocess
import sys

FTLAB_REPO = ""  # Colab only: the git address this notebook was opened from
if "google.colab" in sys.modules and not os.path.isdir("ftlab"):
    subprocess.run(["git", "clone", "--depth=1", FTLAB_REPO, "ftlab"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "./ftlab[course,gpu]"], check=True)
    os.chdir("ftlab")
while not os.path.isdir("data") and os.getcwd() != os.path.dirname(os.getcwd()):
    os.chdir("..")

# %% id="imports"
import dataclasses
import re
import time

import matplotlib.pyplot as plt
import torch
from datasets import concatenate_datasets, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, evaluate, models, plots
from ftlab.apps import course
from ftlab.apps.board.train_panel import TrainPanel

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
name = "Lumi"  # what the model should call itself
author = "the Ada Lab"  # who it should say made it
r = 16  # rank: how thin the two matrices are
lora_alpha = 32  # their product is scaled by lora_alpha / r
target_modules = "all-linear"  # which layers get a pair of matrices
learning_rate = 1e-3
order_learning_rate = 2e-3  # for the task with exact answers
high_learning_rate = 1e-2  # for the forgetting demonstration
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 8  # examples per step
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, of a side experiment, of the order task, questions of each kind, tokens of an order
    "smoke": ("smollm2-135m", 3, 1, 1, 4, 8),
    "cpu": ("smollm2-135m", 36, 5, 90, 200, 48),
    "t4": ("Qwen/Qwen2.5-1.5B-Instruct", 30, 12, 90, 200, 48),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 30, 12, 60, 200, 48),
}
default_model, default_steps, side_steps, order_steps, question_count, order_tokens = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
set_seed(seed)

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# Three scores, taken before anything is changed: questions about who the model is (none of them will be trained on),
# and easy general knowledge, once with four choices each, where guessing gives 25%, and once answered freely, where an
# answer counts when it contains the right word.

# %% [markdown] id="baseline-why" lang="zh" of="a67ffdcc"
# ## 先测基线
# 在改动任何东西之前先测三个分数：关于模型是谁的问题（都不会用来训练）；简单的四选一常识题，瞎猜得 25%；以及自由回答的常识题，回答中含有正确的词才算对。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
model = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)
tokenizer = AutoTokenizer.from_pretrained(model_path)


# %% id="data"
def fill(text):
    return text.replace("{{name}}", name).replace("{{author}}", author)


def to_prompt_completion(row):
    prompt = [{"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": fill(row["output"])}]}


dataset = load_dataset("json", data_files="data/identity_en.json", split="train")
identity_dataset = dataset.map(to_prompt_completion, remove_columns=dataset.column_names)
replay = load_dataset("json", data_files="data/general_en.jsonl", split="train")
replay_dataset = replay.map(to_prompt_completion, remove_columns=replay.column_names)
train_dataset = concatenate_datasets([identity_dataset, replay_dataset])
identity = list(load_dataset("json", data_files="data/identity_en_eval.json", split="train"))[:question_count]
general = list(load_dataset("json", data_files="data/general_mcq.jsonl", split="train"))[:question_count]
free = list(load_dataset("json", data_files="data/general_freeform_en.jsonl", split="train"))[:question_count]
print(train_dataset[0], train_dataset[-1], general[0], free[0], sep="\n")


# %% id="answers"


def answers(model, conversations, max_new_tokens=32):
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


def identity_share(replies):
    """Return the share of replies that contain the name, or the author, that the question asks for."""
    pairs = zip(replies, identity, strict=True)
    return sum(fill(row["expect"]).casefold() in reply.casefold() for reply, row in pairs) / len(identity)


def free_share(replies):
    """Return the share of replies that contain, as whole words, one of the answers that count as right."""
    patterns = [rf"\b({'|'.join(row['expect'])})\b" for row in free]
    return sum(bool(re.search(*pair, re.I)) for pair in zip(patterns, replies, strict=True)) / len(replies)


# %% id="scores"
who = [[{"role": "user", "content": row["instruction"]}] for row in identity]
answers_before = answers(model, who)
identity_before = identity_share(answers_before)
general_before = evaluate.multiple_choice(model, tokenizer, general)
asked_freely = [[{"role": "user", "content": row["instruction"]}] for row in free]
free_answers_before = answers(model, asked_freely, max_new_tokens=48)
free_before = free_share(free_answers_before)
print(f"identity: {identity_before:.0%} of {len(identity)}, general: {general_before:.0%} of {len(general)} questions")
print(f"answered freely: {free_before:.0%} of {len(free)} questions")

# %% [markdown] id="idea-why"
# ## The low-rank idea
# A layer multiplies by a matrix `W`. Fine-tuning wants `W + ΔW`. LoRA's hypothesis: `ΔW` need not be full-rank, a
# product of two low-rank matrices is enough, `ΔW = B A`. A 4 x 4 layer, rank 1:

# %% [markdown] id="idea-why" lang="zh" of="ff21ee68"
# ## 低秩的想法
# 一层就是乘以一个矩阵 `W`。微调想要 `W + ΔW`。LoRA 的假设是：`ΔW` 不必满秩，两个低秩矩阵的乘积就够了，`ΔW = B A`。一个 4 x 4 的层，秩为 1：

# %% id="literal"
B = torch.tensor([[1.0], [2.0], [0.0], [-1.0]])  # 4 outputs, rank 1
A = torch.tensor([[3.0, 0.0, 1.0, 0.0]])  # rank 1, 4 inputs
print(B @ A)
print(f"{A.numel() + B.numel()} numbers, a change of {(B @ A).numel()}, rank {torch.linalg.matrix_rank(B @ A)}")

# %% [markdown] id="scratch-why"
# ### Ten lines
# `W` is frozen. `A` starts random, `B` starts at zero, so that the layer begins as what it was. The change is scaled by
# `lora_alpha / r`, which keeps its size comparable when you try another `r`.


# %% [markdown] id="scratch-why" lang="zh" of="d5aef01d"
# ### 十行代码
# `W` 被冻结。`A` 随机初始化，`B` 从零开始，所以这一层一开始和原来一样。改动按 `lora_alpha / r` 缩放，这样换一个 `r` 时大小仍可比较。


# %% id="scratch"
class LoRALinear(nn.Module):
    def __init__(self, linear, r, lora_alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(r, linear.in_features) / r)  # (r, inputs)
        self.B = nn.Parameter(torch.zeros(linear.out_features, r))  # (outputs, r)
        self.scale = lora_alpha / r

    def forward(self, x):  # x: (batch, seq_len, inputs)
        return self.linear(x) + x @ self.A.T @ self.B.T * self.scale


# %% [markdown] id="parity-why"
# The library's layer, given the same weights, must give the same numbers.

# %% [markdown] id="parity-why" lang="zh" of="90ad754f"
# 库里的层，给它同样的权重，必须得到同样的数字。

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

# %% [markdown] id="count-why"
# ## How the hyperparameters affect the size
# For every adapted layer LoRA adds `r x inputs + outputs x r` weights. So its size grows in proportion to `r` and with
# the number of layers that `target_modules` names.

# %% [markdown] id="count-why" lang="zh" of="0d6531f0"
# ## 超参数如何影响大小
# 每个被适配的层，LoRA 增加 `r x 输入数 + 输出数 x r` 个权重。所以它的大小与 `r` 成正比，也随 `target_modules` 点名的层数增长。

# %% id="count"
for targets in (["q_proj", "v_proj"], "all-linear"):
    for rank in (1, 8, 64):
        candidate = get_peft_model(model, LoraConfig(r=rank, target_modules=targets, task_type="CAUSAL_LM"))
        trainable, total = candidate.get_nb_trainable_parameters()
        print(f"r = {rank:<3} {targets!s:<22} {trainable:>12,} trainable, {trainable / total:.2%} of all")
        model = candidate.unload()

# %% [markdown] id="train-why"
# ## Fine-tune a new identity
# `all-linear` with `r = 16`. Every argument that matters is spelt out. The questions about the model are mixed with general
# ones and the model's own answers to them (*replay*): training on what it would say anyway keeps it where it is.

# %% [markdown] id="train-why" lang="zh" of="349a07b7"
# ## 微调出一个新身份
# `all-linear`，`r = 16`。所有要紧的参数都逐项写明。关于模型自己的问题与通用问题混在一起，后者配的是模型自己的回答（回放，replay）：训练它本来就会说的话，能让它留在原处。

# %% id="lora"
peft_config = LoraConfig(
    r=r, lora_alpha=lora_alpha, lora_dropout=0.0, target_modules=target_modules, task_type="CAUSAL_LM"
)
peft_model = get_peft_model(model, peft_config)
peft_model.print_trainable_parameters()

# %% id="config"
training_args = SFTConfig(
    output_dir="runs/03_lora",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per example
    logging_steps=1,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)

# %% [markdown] id="predict"
# **Predict before you run:** will the first loss be nearer to 0.3 or to 3? The model has never seen these answers.

# %% [markdown] id="predict" lang="zh" of="0e89bc6a"
# **先预测，再运行：** 第一个损失更接近 0.3 还是 3？模型从没见过这些回答。

# %% id="train"
trainer = SFTTrainer(model=peft_model, args=training_args, train_dataset=train_dataset, processing_class=tokenizer)
started = time.perf_counter()
trainer.train()
train_seconds = time.perf_counter() - started
identity_log = trainer.state.log_history
print(f"{train_seconds:.0f} seconds")

# %% id="loss"
fig, ax = plt.subplots(figsize=(6, 3))
plots.plot_loss(identity_log, ax)
plt.show()

# %% [markdown] id="after-why"
# ## Before and after
# The same questions, the same greedy decoding. All scores again: the one we trained for and those we did not.

# %% [markdown] id="after-why" lang="zh" of="6330e091"
# ## 训练前与训练后
# 同样的问题，同样的贪心解码。所有分数都再测一次：我们训练的那个，和我们没有训练的那些。

# %% id="after"
answers_after = answers(peft_model, who)
identity_after = identity_share(answers_after)
print(f"identity: {identity_before:.0%} -> {identity_after:.0%}")
for row, old, new in list(zip(identity, answers_before, answers_after, strict=True))[:4]:
    print(f"\n{row['instruction']}\n  before: {old}\n  after:  {new}")

# %% id="general-after"
general_after = evaluate.multiple_choice(peft_model, tokenizer, general)
free_answers_after = answers(peft_model, asked_freely, max_new_tokens=48)
free_after = free_share(free_answers_after)
print(f"general: {general_before:.0%} -> {general_after:.0%}, answered freely: {free_before:.0%} -> {free_after:.0%}")

# %% [markdown] id="reload-why"
# ## Save it, load it, same answers
# Only the adapter is written. Loaded onto a fresh copy of the model, every weight of it must be the same bit for bit. The
# answers then agree too, but for a near tie between two tokens that rounding decides.

# %% [markdown] id="reload-why" lang="zh" of="1af03d0b"
# ## 保存、加载、回答相同
# 写入磁盘的只有适配器。把它加载到一份新的模型上，每个权重都必须逐位相同。回答也随之一致，只有两个 token 概率几乎相等、由舍入决定时才会不同。

# %% id="reload"
peft_model.save_pretrained("runs/03_lora/adapter")
fresh = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=dtype, attn_implementation=attention, device_map="cuda" if on_gpu else "cpu"
)
reloaded = PeftModel.from_pretrained(fresh, "runs/03_lora/adapter")
answers_reloaded = answers(reloaded, who)
print(f"{sum(a == b for a, b in zip(answers_after, answers_reloaded, strict=True))} of {len(identity)} answers equal")
trained_weights = {key: weight for key, weight in peft_model.named_parameters() if "lora_" in key}
for key, weight in reloaded.named_parameters():
    assert "lora_" not in key or torch.equal(weight, trained_weights[key]), key

# %% [markdown] id="break-why"
# ## What goes wrong: the name alone, and a learning rate that is too high
# The identity score alone would call both of these runs a success. Take the adapter off, put a new one on, train it on
# nothing but questions about itself; then again, with ten times the learning rate and a third of the steps. Then ask
# what they still know.


# %% [markdown] id="break-why" lang="zh" of="096ac028"
# ## 故意出错：只用身份数据，以及过大的学习率
# 只看身份分数，会以为这两次训练都很成功。取下适配器，换上新的，只用关于它自己的问题训练；再来一次，用十倍的学习率、三分之一的步数。然后问它们还知道什么。


# %% id="train-function"
def train_lora(learning_rate, max_steps, r=r, target_modules=target_modules, train_dataset=train_dataset):
    set_seed(seed)
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=target_modules, task_type="CAUSAL_LM")
    candidate = get_peft_model(model, config)
    args = dataclasses.replace(training_args, learning_rate=learning_rate, max_steps=max_steps)
    run = SFTTrainer(candidate, args, train_dataset=train_dataset, processing_class=tokenizer)
    run.train()
    return candidate, run.state.log_history


# %% id="name-alone"
model = peft_model.unload()
name_alone, alone_log = train_lora(learning_rate, max_steps, train_dataset=identity_dataset)
identity_alone = identity_share(answers(name_alone, who))
general_alone = evaluate.multiple_choice(name_alone, tokenizer, general)
free_answers_alone = answers(name_alone, asked_freely, max_new_tokens=48)
free_alone = free_share(free_answers_alone)
print(f"identity: {identity_alone:.0%}, general questions answered freely: {free_alone:.0%}")

# %% id="high-lr"
model = name_alone.unload()
too_hard, high_log = train_lora(high_learning_rate, max_steps // 3, train_dataset=identity_dataset)
identity_high = identity_share(answers(too_hard, who))
general_after_high_lr = evaluate.multiple_choice(too_hard, tokenizer, general)
free_answers_high = answers(too_hard, asked_freely, max_new_tokens=48)
free_after_high_lr = free_share(free_answers_high)
print(f"identity: {identity_high:.0%}, general questions answered freely: {free_after_high_lr:.0%}")

# %% id="forgetting-answers"
said = zip(free, free_answers_before, free_answers_after, free_answers_alone, free_answers_high, strict=True)
for row, *replies in list(said)[:4]:
    print(f"\n{row['instruction']}")
    for label, reply in zip(("before", "after", "name alone", "lr too high"), replies, strict=True):
        print(f"  {label + ':':<13}{reply}")

# %% [markdown] id="forgetting-why"
# Read the answers too: a model can still pick the right one of four choices when it no longer says it. In the plot, left
# is what we trained for, the rest what we did not. Judge a fine-tune by all of them.

# %% [markdown] id="forgetting-why" lang="zh" of="26e308e1"
# 也要读一读回答：模型可能仍能从四个选项里挑出正确的，却不再说得出来。图中左边是我们训练的，其余是我们没有训练的。评判一次微调，三者都要看。

# %% id="forgetting"
runs = ("before", "after", "name alone", "lr too high")
scores = {
    "who are you?": (len(identity), identity_before, identity_after, identity_alone, identity_high),
    "general, four choices": (len(general), general_before, general_after, general_alone, general_after_high_lr),
    "general, answered freely": (len(free), free_before, free_after, free_alone, free_after_high_lr),
}
fig, axes = plt.subplots(1, 3, figsize=(12, 3.2), sharey=True, layout="constrained")
for ax, (label, (total, *shares)) in zip(axes, scores.items(), strict=True):
    plots.plot_scores(dict(zip(runs, shares, strict=True)), total, ax)
    ax.set_xlabel(label)
plt.show()

# %% [markdown] id="extraction-why"
# ## A task with an exact answer
# A name is easy. Now a job that somebody might pay for: turn a customer's message into the JSON that a till
# understands. Customers change their minds ("no wait, six instead") and mention numbers that mean nothing. Nothing but
# the exact JSON counts, and the messages asked here use sentence forms that are never trained on.

# %% [markdown] id="extraction-why" lang="zh" of="429c4a3d"
# ## 有标准答案的任务
# 名字很容易。现在来做一件有人愿意付钱的事：把顾客的消息变成收银机看得懂的 JSON。顾客会改主意（“不，还是六个吧”），也会提到毫无意义的数字。只有完全一致的 JSON 才算对，而且这里问的消息用的是训练中从未出现过的句式。

# %% id="extraction-data"
orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})


def to_order(row):
    prompt = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


order_dataset = orders["train"].map(to_order, remove_columns=orders["train"].column_names)
asked = orders["eval"].select(range(min(question_count, 100))).map(to_order)
print(asked[0]["input"], asked[0]["output"], sep="\n")


# %% id="extraction-score"
def exact_share(model):
    replies = answers(model, asked["prompt"], max_new_tokens=order_tokens)
    right = [reply.strip() == row["output"] for reply, row in zip(replies, asked, strict=True)]
    return sum(right) / len(right), replies


# %% id="extraction"
model = too_hard.unload()
extraction_before, order_answers_before = exact_share(model)
order_args = dataclasses.replace(
    training_args,
    max_steps=order_steps,
    learning_rate=order_learning_rate,
    warmup_steps=0.1,  # below 1: a share of all steps
    train_sampling_strategy="group_by_length",  # rows of like length together: less padding, fewer seconds
)
set_seed(seed)
order_model = get_peft_model(model, peft_config)
trainer = SFTTrainer(order_model, order_args, train_dataset=order_dataset, processing_class=tokenizer)
started = time.perf_counter()
trainer.train()
extraction_train_seconds = time.perf_counter() - started

# %% id="extraction-after"
extraction_after, order_answers_after = exact_share(order_model)
print(f"exact: {extraction_before:.0%} -> {extraction_after:.0%} of {len(asked)}, {extraction_train_seconds:.0f} s")
for row, before, after in list(zip(asked, order_answers_before, order_answers_after, strict=True))[:3]:
    print(f"\n{row['input']}\n  wanted: {row['output']}\n  before: {before}\n  after:  {after}")

# %% [markdown] id="extraction-read"
# What still goes wrong: the JSON, the name and the time, or the correction in a form never seen? Print the wrong answers and
# look. Where it is the form, more *kinds of sentences* in the training data are what to try: that is a matter of data, not
# of LoRA.

# %% [markdown] id="extraction-read" lang="zh" of="ce6fe5cc"
# 还有哪里出错：是 JSON 本身、名字和时间，还是以没见过的说法做的更正？把错误的回答打印出来看一看。如果错在句式，就该试着给训练数据多加一些*句式*：那是数据的问题，不是 LoRA 的问题。

# %% [markdown] id="knobs-why"
# ## Tune the hyperparameters
# What you typed above, as a form. Each control shows its recipe key; below are the cost of the setting, estimated in
# advance, and the command it stands for. Press Start, turn `lora_rank` down to 1, take the free folder that is offered,
# Start again, and choose the first run under *compare with*. Stop saves; Continue resumes exactly there.

# %% [markdown] id="knobs-why" lang="zh" of="0b335bcf"
# ## 调一调超参数
# 上面你键入的内容，变成了一张表单。每个控件都标着它在配方里的键；下面是这样设置的预计开销，以及等价的命令。按“开始训练”，把 `lora_rank` 降到 1，改用它给出的空闲文件夹，再开始一次，然后在“对比”里选第一次。停止会保存；继续时如同什么都没发生过。

# %% id="knobs"
recipe = {
    "model_name_or_path": model_name,
    "dataset": "identity_en,general_en",
    "dataset_substitutions": {"name": name, "author": author},
    "output_dir": "runs/03_lora_knobs/run",
    "lora_rank": r,
    "lora_alpha": lora_alpha,
    "lora_target": "all" if target_modules == "all-linear" else ",".join(target_modules),
    "learning_rate": learning_rate,
    "lr_scheduler_type": "cosine",
    "max_steps": side_steps,
    "per_device_train_batch_size": per_device_train_batch_size,
    "cutoff_len": 256,
    "seed": seed,
}
in_sight = ["lora_rank", "lora_alpha", "lora_target", "learning_rate", "max_steps", "per_device_train_batch_size"]
TrainPanel(recipe, visible=[*in_sight, "output_dir"]).show()

# %% [markdown] id="knobs-runs-why"
# Now four short runs by hand, with one hyperparameter changed in each. Which one learns slowest, and why? Compare the
# last losses: a lower rank and fewer layers slow it down at this learning rate; a tenth of the learning rate goes almost nowhere
# in so few steps. Five steps on one seed say how a run begins, not where it ends: rank 1 may catch up.

# %% [markdown] id="knobs-runs-why" lang="zh" of="35b897d0"
# 现在亲手做四次短训练，每次只改一个超参数。哪一次学得最慢，为什么？比较最后的损失：在这个学习率下，更小的秩、更少的层会让它变慢；十分之一的学习率在这么少的步数里几乎原地不动。一个种子的五步只说明开头怎样，不说明结局：秩 1 也可能追上来。

# %% id="knobs-runs"
settings = {
    "as recommended": {},
    "r = 1": {"r": 1},
    "q and v only": {"target_modules": ["q_proj", "v_proj"]},
    "lr / 10": {"learning_rate": learning_rate / 10},
}
model = order_model.unload()
curves = {}
for label, changed in settings.items():
    candidate, curves[label] = train_lora(**({"learning_rate": learning_rate, "max_steps": side_steps} | changed))
    model = candidate.unload()
    print(f"{label:<16} loss {curves[label][0]['loss']:.2f} -> {curves[label][-2]['loss']:.2f}")

# %% id="knobs-plot"
fig, ax = plt.subplots(figsize=(7.5, 3), layout="constrained")
for label, log in curves.items():
    ax.plot([row["loss"] for row in log if "loss" in row], label=label)
ax.set(xlabel="optimizer step", ylabel="loss per trained token")
ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
plt.show()

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
first_loss, *_, last_loss = [row["loss"] for row in identity_log if "loss" in row]
assert last_loss < first_loss
assert identity_before == 0
full_size = PROFILE != "smoke"
assert identity_after >= 0.9 or not full_size
assert general_before - general_after <= 0.05 < 0.15 <= general_before - general_after_high_lr or not full_size
assert free_before - free_after <= 0.1 < 0.15 <= free_before - free_alone or not full_size
assert extraction_before < 0.05 and (extraction_after >= 0.8 or not full_size)
outcomes = {
    "identity_before": identity_before,
    "identity_after": identity_after,
    "general_before": general_before,
    "general_after": general_after,
    "general_after_high_lr": general_after_high_lr,
    "free_before": free_before,
    "free_after": free_after,
    "free_alone": free_alone,
    "free_after_high_lr": free_after_high_lr,
    "train_seconds": train_seconds,
    "extraction_before": extraction_before,
    "extraction_after": extraction_after,
    "extraction_train_seconds": extraction_train_seconds,
    "lora_parity_max_abs_diff": lora_parity_max_abs_diff,
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; set `learning_rate = 2e-4` there: bigger models need less.
#
# **Next:** the same with four bits per weight, in [04 · QLoRA](04_qlora.ipynb).

# %% [markdown] id="next" lang="zh" of="528bcf19"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；那里从 `learning_rate = 2e-4` 开始，更大的模型需要更小的学习率。
#
# **下一步：** 同样的事，每个权重只用 4 比特，见 [04 · QLoRA](04_qlora.ipynb)。
