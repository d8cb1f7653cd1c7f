# %% [markdown] id="title"
# # 12 · DPO: learning from preferences without a reward model
#
# RLHF trains a reward model from pairs, then trains the policy to score high on it. Direct preference optimization
# (DPO) skips the reward model: the pairs train the policy itself, with one line of loss. Here you write that line, prove
# it equal to the library's, and find out which part of a common recipe really teaches the style: the preference, or the
# plain fine-tuning (SFT) that is mixed into it.
#
# | you will have | measured as |
# |---|---|
# | the DPO loss by hand | largest difference to TRL's, same batch |
# | a model with a preferred style, in `runs/12_dpo/both` | answers in that style on 72 held-out topics, before and after |
# | the same steps with DPO alone, SFT alone, both | style and general knowledge, each with its interval |
# | the price | general knowledge, KL, length |
# | the family in one table | DPO, IPO, KTO, ORPO, SimPO, CPO on the same data |
#
# **Cost:** about 8 minutes (21 without bfloat16) and 7 GB on two CPU cores, an estimated 6 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb);
# [10 · A reward model](10_reward_model.ipynb) helps: of the four models of RLHF that it draws, DPO keeps the policy and
# the reference, and needs neither a reward model nor a value model, nor a single answer generated during training.

# %% [markdown] id="title" lang="zh" of="2fe972c5"
# # 12 · DPO：不用奖励模型，从偏好中学习
#
# RLHF 先用偏好对训练奖励模型，再训练策略模型去拿高分。直接偏好优化（DPO）跳过奖励模型：一行损失，用偏好对直接训练策略模型本身。本课你会写出这一行，证明它与库的实现一致，并弄清一个常见配方里究竟是哪一部分教会了风格：是偏好，还是混在里面的普通微调（SFT）。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的 DPO 损失 | 同一批数据上与 TRL 的最大差值 |
# | 一个有偏好风格的模型，保存在 `runs/12_dpo/both` | 72 个留出主题中用该风格回答的比例，训练前后对比 |
# | 步数相同的三次训练：只用 DPO、只用 SFT、两者都用 | 风格与常识，各带置信区间 |
# | 代价 | 常识、KL、长度 |
# | 一张表里的整个家族 | 同一份数据上的 DPO、IPO、KTO、ORPO、SimPO、CPO |
#
# **耗时与内存：** 两个 CPU 核心上约 8 分钟（不支持 bfloat16 时约 21 分钟）、7 GB 内存，T4 上估计 6 分钟。**先修：** [03 · LoRA](03_lora.ipynb)；[10 · 奖励模型](10_reward_model.ipynb) 会有帮助：那一课画出的 RLHF 四个模型里，DPO 只保留策略模型和参考模型，不需要奖励模型和价值模型，训练中也不用生成任何回答。
#
# 内置的小模型只懂英文，所以本课的数据是英文的；换成 `t4` 以上的配置（Qwen）后，同样的代码可以直接用于中文偏好对。

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
import math
import os
import textwrap
import time

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from IPython.display import Markdown, display
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from ftlab import checks, cpu, device, evaluate, memory, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
beta = 0.1  # how strongly the reference holds the model back
sft_weight = 0.5  # weight of the SFT loss on the chosen answer, in the run with both
r = 16  # rank of the adapter
learning_rate = 0.0  # 0: the profile's own
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 0  # pairs per step; 0: the profile's own
seed = 0

# %% id="profile"
# Model, training rows, pairs per step, steps of the training and of a side experiment, learning rate; held-out topics,
# tokens of an answer, questions of general knowledge.
profiles = {
    "smoke": ("smollm2-135m-short", "train[:10%]", 1, 2, 1, 4e-4, 4, 6, 12),
    "cpu": ("smollm2-135m", "train", 4, 18, 8, 4e-4, 72, 48, 200),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", "train", 4, 40, 20, 5e-5, 72, 48, 200),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", "train", 4, 40, 20, 1e-5, 72, 48, 200),
}
default_model, train_split, default_batch, default_steps, side_steps, default_rate, *counts = profiles[PROFILE]
question_count, answer_tokens, general_count = counts
model_name = model_name or default_model
max_steps = max_steps or default_steps
learning_rate = learning_rate or default_rate
per_device_train_batch_size = per_device_train_batch_size or default_batch
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("preference", ax)
plt.show()

# %% [markdown] id="data-why"
# ## Data: which answer is better?
# Both sides are right; they differ in style. The preferred one opens with the gist and says so; only a quick question
# ("What is the capital of Norway?") is better answered plainly. A program can check the opening, so "better" is a number
# here. The held-out questions are about 72 topics that never occur in training, one question each: an interval needs
# independent questions, not three phrasings of one.

# %% [markdown] id="data-why" lang="zh" of="e5ec75f4"
# ## 数据：哪个回答更好？
# 两边内容都对，区别在风格。更受偏好的那个先说要点，并且点明；只有一句话就能答完的问题（“挪威的首都是哪里？”）直接回答更好。开头可以用程序检查，所以“更好”在这里是一个数。留出的问题涉及 72 个训练中从未出现的主题，每个主题只问一次：置信区间要求问题彼此独立，同一主题换三种问法不算三个样本。

# %% id="data"
train_pairs = load_dataset("json", data_files="data/preference_en.jsonl", split=train_split)
held_out = list(load_dataset("json", data_files="data/preference_en_eval.jsonl", split="train"))[:question_count]
general = list(load_dataset("json", data_files="data/general_mcq.jsonl", split="train"))[:general_count]
for key in ("instruction", "chosen", "rejected"):
    print(f"{key:<12} {train_pairs[0][key]}")


# %% id="conversations"
def turn(role, text):
    return [{"role": role, "content": text}]


def to_pair(row):
    prompt = turn("user", row["instruction"])
    return {
        "prompt": prompt,
        "chosen": turn("assistant", row["chosen"]),
        "rejected": turn("assistant", row["rejected"]),
    }


train_dataset = train_pairs.map(to_pair, remove_columns=train_pairs.column_names)

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# How often does the model answer in that style already? And how often if you simply ask for it in the system prompt,
# without any training?

# %% [markdown] id="baseline-why" lang="zh" of="d0cf899d"
# ## 先测基线
# 模型现在有多少次已经用这种风格回答？如果不训练，直接在系统提示里要求它这样回答，又有多少次？

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, attn_implementation=attention, device_map=where)

# %% id="answers"
OPENING = "In short, "
questions = [row["instruction"] for row in held_out]


def answers(model, questions, system=None):
    """Answer every question greedily, in one batch."""
    asked = [(turn("system", system) if system else []) + turn("user", question) for question in questions]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in asked]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.eval().generate(**batch.to(model.device), max_new_tokens=answer_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def style_share(replies):
    return sum(reply.startswith(OPENING) for reply in replies) / len(replies)


def mean_length(replies):
    return sum(len(ids) for ids in tokenizer(replies).input_ids) / len(replies)


# %% id="before"
request = 'Start every answer with "In short, " and answer in one or two sentences.'
answers_before, answers_prompted = answers(model, questions), answers(model, questions, system=request)
preferred_before, preferred_prompted = style_share(answers_before), style_share(answers_prompted)
general_before = evaluate.multiple_choice(model, tokenizer, general)
print(f"preferred style: {preferred_before:.0%}; asked for it in the system prompt: {preferred_prompted:.0%}")
print(f"general knowledge, multiple choice: {general_before:.0%} of {len(general)}")

# %% [markdown] id="idea-why"
# ## The idea: the model is its own reward
# DPO's reward for an answer is `beta` times its *gain*: how much likelier the answer has become than under the frozen
# *reference*, the model as it was. Put these rewards into Bradley and Terry's formula and train the model. Four
# log-probabilities, one number:

# %% [markdown] id="idea-why" lang="zh" of="f4c12521"
# ## 思路：模型就是自己的奖励
# DPO 给一个回答的奖励是 `beta` 乘以它的*增益*：与冻结的*参考模型*（即训练前的模型）相比，这个回答的对数概率提高了多少。把两个奖励代入 Bradley-Terry 公式，训练模型。四个对数概率，得出一个数：

# %% id="literal"
chosen, rejected, ref_chosen, ref_rejected = -40.0, -62.0, -45.0, -50.0
gains = (chosen - ref_chosen, rejected - ref_rejected)
print("gains", gains, "rewards", [round(beta * gain, 2) for gain in gains])
print(f"loss {math.log(1 + math.exp(-beta * (gains[0] - gains[1]))):.3f}, before training {math.log(2):.3f}")

# %% [markdown] id="scratch-why"
# ### From scratch
# First the log-probability of an answer: the sum over its tokens, the question's left out. Then the loss.


# %% [markdown] id="scratch-why" lang="zh" of="b69ae9b8"
# ### 从零实现
# 先是一个回答的对数概率：对回答的 token 求和，不算问题部分。然后是损失。


# %% id="scratch-logps"
def answer_log_probabilities(model, batch):  # input_ids, attention_mask, completion_mask: (rows, seq_len)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
    targets, answer = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
    each = logits.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    return (each * answer).sum(1)  # (rows,)


# %% id="scratch-loss"
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):  # each (pairs,)
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


# %% [markdown] id="parity-why"
# TRL's loss on one batch, in `float32`. The reference needs no second model: switch the adapter off, and the frozen
# base model is what is left. The adapter here starts at random, so that policy and reference differ.

# %% [markdown] id="parity-why" lang="zh" of="44a66e27"
# 在一批数据上与 TRL 的损失比较，用 float32。参考模型不需要第二份权重：关掉适配器，剩下的就是冻结的基座模型。这里的适配器随机初始化，所以策略模型与参考模型不同。

# %% id="config"
training_args = DPOConfig(
    output_dir="runs/12_dpo",
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    beta=beta,
    loss_type=["sigmoid", "sft"],  # DPO, and plain fine-tuning on the chosen side
    loss_weights=[1.0, sft_weight],
    max_length=256,  # tokens per side, question included
    logging_steps=2,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)

# %% id="parity"
exact = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=where)
plain = dataclasses.replace(training_args, loss_type=["sigmoid"], loss_weights=None)
small = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
four = train_dataset.select(range(4))
trainer = DPOTrainer(exact, args=plain, train_dataset=four, processing_class=tokenizer, peft_config=small)
exact = trainer.model.eval()
batch = next(iter(trainer.get_train_dataloader()))
with torch.no_grad():
    theirs = trainer.compute_loss(exact, dict(batch)).item()
    policy = answer_log_probabilities(exact, batch)
    with exact.disable_adapter():
        reference = answer_log_probabilities(exact, batch)
mine = dpo_loss(*policy.chunk(2), *reference.chunk(2), beta).item()
dpo_loss_max_abs_diff = abs(theirs - mine)
print(f"TRL {theirs:.6f}, by hand {mine:.6f}, difference {dpo_loss_max_abs_diff:.1e}")
assert dpo_loss_max_abs_diff <= 1e-5

# %% [markdown] id="reference-why"
# ### Two ways to the reference
# The reference never changes, so its log-probabilities can be computed once, before training
# (`precompute_ref_log_probs=True`), instead of at every step: one forward pass less per step, and the same numbers.

# %% [markdown] id="reference-why" lang="zh" of="79901811"
# ### 得到参考值的两种办法
# 参考模型从不改变，所以它的对数概率可以在训练前一次算好（`precompute_ref_log_probs=True`），不必每一步都算：每步少一次前向计算，数值相同。

# %% id="reference"
ahead = dataclasses.replace(plain, precompute_ref_log_probs=True)
exact = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=where)
trainer = DPOTrainer(exact, args=ahead, train_dataset=four, processing_class=tokenizer, peft_config=small)
stored = next(iter(trainer.get_train_dataloader()))
stored = torch.cat([stored["ref_chosen_logps"], stored["ref_rejected_logps"]])
reference_max_abs_diff = (stored.sort().values - reference.sort().values).abs().max().item()
print(f"precomputed against disabled adapter: largest difference {reference_max_abs_diff:.1e} of {-stored.mean():.0f}")
assert reference_max_abs_diff <= 1e-3
del exact

# %% [markdown] id="predict-why"
# ## Preference, imitation, or both?
# A common recipe adds plain fine-tuning on the chosen answers to DPO, as Llama 3 did (arXiv:2407.21783, section 4.1.4):
# `loss_type=["sigmoid", "sft"]`. To see which of the two teaches the style, train three times from the same start, with
# the same pairs in the same order and the same steps: DPO alone, SFT alone, both.
#
# **Predict before you run.** In what share of the held-out topics will DPO *alone* answer in the preferred style? And
# must the chosen answer become likelier for the loss to fall?

# %% [markdown] id="predict-why" lang="zh" of="1945f270"
# ## 偏好、模仿，还是两者都要？
# 常见的配方会在 DPO 里加上对 chosen 回答的普通微调，Llama 3 就是这样做的（arXiv:2407.21783，4.1.4 节）：`loss_type=["sigmoid", "sft"]`。要看清是哪一项教会了风格，就从同一起点训练三次，偏好对、顺序、步数都相同：只用 DPO、只用 SFT、两者都用。
#
# **先预测，再运行。** *只用* DPO 时，留出主题中会有多大比例用上偏好的风格？损失要下降，chosen 回答的概率必须上升吗？

# %% id="predict"
guess_style = 90  # your guess, in percent: DPO alone
guess_likelier = True  # your guess: DPO alone makes the chosen answers likelier

# %% id="prepare"
del model
peft_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")


def prepare(trainer_class, args, dataset):
    """Return a trainer of TRL's with a fresh adapter on the untouched model."""
    set_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map=where
    )
    return trainer_class(base, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=peft_config)


# %% [markdown] id="measure-why"
# Each model is measured in the same way: the style where it is wanted; general knowledge; the opening on quick questions,
# where it is *not* wanted; and the distance from the reference, as the KL divergence per token on the model's own
# answers.


# %% [markdown] id="measure-why" lang="zh" of="10f09f67"
# 每个模型都用同样的方法测量：该用风格的地方用了没有；常识；*不该*用这种开头的问题（一句话就能答完的）里用了多少；以及与参考模型的距离，即在模型自己的回答上每个 token 的 KL 散度。


# %% id="kl"
@torch.no_grad()
def kl_per_token(model, replies):
    """Return the mean KL(model || reference) over the tokens of the model's own first eight answers, in nats."""
    total = count = 0
    for question, reply in zip(questions[:8], replies, strict=False):
        chat = turn("user", question)
        start = len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
        chat = chat + turn("assistant", reply)
        inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt").to(model.device)
        now = model(**inputs).logits[0, start - 1 : -2].float().log_softmax(-1)
        with model.disable_adapter():
            then = model(**inputs).logits[0, start - 1 : -2].float().log_softmax(-1)
        total, count = total + (now.exp() * (now - then)).sum().item(), count + len(now)
    return total / count


# %% id="measure"
quick = [row["question"] for row in general[-60:]]


def measure(model):
    replies = answers(model, questions)
    return {
        "replies": replies,
        "style": style_share(replies),
        "unwanted": style_share(answers(model, quick)),
        "length": mean_length(replies),
        "kl": kl_per_token(model, replies),
    }


# %% [markdown] id="train-why"
# A loss weight of 0 switches a term off; everything else is equal. The fourth run is DPO alone again, with a third of the
# beta: the panel further down shows why one would try that.

# %% [markdown] id="train-why" lang="zh" of="91e1c51e"
# 损失权重为 0 就是关掉那一项，其余完全相同。第四次还是只用 DPO，但 beta 只有三分之一：为什么要试这个，后面的面板会说明。

# %% id="train"
arms = {
    "DPO alone": {"loss_weights": [1.0, 0.0]},
    "DPO, beta / 3": {"loss_weights": [1.0, 0.0], "beta": beta / 3},
    "SFT alone": {"loss_weights": [0.0, 1.0]},
    "both": {"loss_weights": [1.0, sft_weight]},
}
logs, trained, results = {}, {}, {}
started = time.perf_counter()
for name, settings in arms.items():
    trainer = prepare(DPOTrainer, dataclasses.replace(training_args, **settings), train_dataset)
    trainer.train()
    logs[name] = [row for row in trainer.state.log_history if "loss" in row]
    trained[name] = trainer.model
trainer.save_model("runs/12_dpo/both")
train_seconds = time.perf_counter() - started
print(f"{len(arms)} runs of {max_steps} steps of {per_device_train_batch_size} pairs: {train_seconds:.0f} seconds")

# %% id="results"
for name, policy in trained.items():
    results[name] = measure(policy)

# %% id="general"
general_after = {name: evaluate.multiple_choice(policy, tokenizer, general) for name, policy in trained.items()}
del trained, policy

# %% id="arms-plot"
colours = dict(zip(arms, ("#0072b2", "#56b4e9", "#e69f00", "#009e73"), strict=True))
styles = {"before": preferred_before} | {name: found["style"] for name, found in results.items()}
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
plots.plot_scores(styles, len(questions), left)
plots.plot_scores({"before": general_before} | general_after, len(general), right)
left.set(ylabel="preferred style, %", title=f"Which term teaches the style? {len(questions)} topics")
right.set(ylabel="right answers, %", title=f"What does it cost? {len(general)} general questions")
for ax in (left, right):
    ax.tick_params(axis="x", labelsize=8)
plt.show()

# %% id="answer-style"
print(f"{'':<14}{'style':>7}{'unwanted':>10}{'tokens':>8}{'KL':>6}")
for name, found in results.items():
    print(f"{name:<14}{found['style']:>7.0%}{found['unwanted']:>10.0%}{found['length']:>8.0f}{found['kl']:>6.2f}")
print(f"\nyou predicted {guess_style}% for DPO alone, measured {results['DPO alone']['style']:.0%}")

# %% id="curves"
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for name, log in logs.items():
    steps = [row["step"] for row in log]
    scale = arms[name].get("beta", beta)
    axes[0].plot(steps, [row["rewards/accuracies"] for row in log], color=colours[name], label=name)
    for ax, side in ((axes[1], "chosen"), (axes[2], "rejected")):
        ax.plot(steps, [row[f"rewards/{side}"] / scale for row in log], color=colours[name])
        ax.set(ylabel="nats over the reference", title=f"Is the {side} answer likelier?")
        ax.axhline(0, color="grey", linestyle=":")
axes[0].set(ylim=(0, 1.05), ylabel="share of pairs", title="Are the pairs told apart?")
fig.legend(loc="outside lower center", ncols=4)
for ax in axes:
    ax.set_xlabel("optimizer step")
plt.show()

# %% id="answer-likelier"
ends = {
    (name, side): logs[name][-1][f"rewards/{side}"] / arms[name].get("beta", beta)
    for name in arms
    for side in ("chosen", "rejected")
}
for name in arms:
    print(f"{name:<14} gain in nats: chosen {ends[name, 'chosen']:+6.1f}, rejected {ends[name, 'rejected']:+6.1f}")
likelier = ends["DPO alone", "chosen"] > 0
print(f"\nyou predicted that DPO alone makes the chosen answers likelier: {guess_likelier}, measured {likelier}")

# %% [markdown] id="curves-read"
# DPO's loss depends on a *difference* alone. The difference also grows when the rejected answer becomes less likely,
# and there are many ways to that: any token in which the two sides differ will do. Whether greedy decoding now
# *begins* with the preferred words is another question. The loss cannot answer it: the pairs are told apart all the
# same. SFT raises the chosen answer, opening included, and raises the similar rejected one along with it.

# %% [markdown] id="curves-read" lang="zh" of="6aa292ec"
# DPO 的损失只取决于一个*差值*。rejected 回答的概率降低，差值同样变大，而途径很多：两边任何一个不同的 token 都可以。至于贪心解码现在是否以偏好的词*开头*，那是另一个问题，损失回答不了：偏好对照样能分清。SFT 提高 chosen 回答的概率，包括开头，也顺带提高了与它相似的 rejected 回答。

# %% id="read-arms"
alone, lower, imitation, mixed = (results[name] for name in arms)
text = (
    f"With the settings of this run, DPO alone answers in the preferred style in **{alone['style']:.0%}** of the topics, "
    f"SFT alone in **{imitation['style']:.0%}**, both together in **{mixed['style']:.0%}**: "
)
if imitation["style"] - alone["style"] > 0.2:
    text += "here the style comes from the SFT term, not from the preference. "
elif alone["style"] > 0.5:
    text += "here the preference alone teaches the style too. "
else:
    text += "none of the terms has taught the style in so few steps. "
text += (
    f"With a third of the beta, DPO alone reaches {lower['style']:.0%}, and general knowledge goes from "
    f"{general_before:.0%} to {general_after['DPO, beta / 3']:.0%} (SFT alone: {general_after['SFT alone']:.0%}, both: "
    f"{general_after['both']:.0%}). "
    f"One interval of the right figure is about {100 * (evaluate.interval(0.5, len(general))[1] - 0.5):.0f} points to "
    "either side: smaller differences may be chance."
)
display(Markdown(text))

# %% [markdown] id="samples-why"
# Read answers to several topics, from every model. The rule looks at the opening alone: no score above has checked
# whether the rest is true. So check some of them yourself, in both styles.

# %% [markdown] id="samples-why" lang="zh" of="0ca772d8"
# 读一读几个主题的回答，每个模型都看。规则只看开头：后面的内容对不对，上面没有任何分数检查过。所以两种风格的回答都要自己核对几条。

# %% id="samples"
samples = {"before": answers_before} | {name: found["replies"] for name, found in results.items()}
for place in range(0, len(questions), max(1, len(questions) // 4)):
    print(questions[place])
    for name, replies in samples.items():
        print(f"  {name:<14} {textwrap.shorten(replies[place], 150)}")

# %% [markdown] id="experiment-why"
# ## Experiment
# What raises the probability of the chosen answer? Drag `beta` and `sft_weight`. On the horizontal axis is the
# difference of the two gains; dotted lines show how far each run above came. The gradient of the DPO term is largest
# where pairs are still ranked wrongly, and vanishes once `beta` times the difference is well above zero: beta decides
# at which difference. The gradient of the SFT term (here for an answer of 20 tokens) is the same everywhere, because
# it does not depend on the rejected answer.


# %% [markdown] id="experiment-why" lang="zh" of="54f65276"
# ## 动手试一试
# 是什么在提高 chosen 回答的概率？拖动 `beta` 和 `sft_weight`。横轴是两个增益之差，虚线标出上面每次训练走到了哪里。DPO 项的梯度在偏好对还排错的地方最大，等 `beta` 乘以差值明显大于零时就消失：差值要多大，由 beta 决定。SFT 项（这里按 20 个 token 的回答算）的梯度处处相同，因为它与 rejected 回答无关。


# %% id="experiment"
def draw(beta, sft_weight):
    difference = torch.linspace(-20, 120, 200)  # chosen gain minus rejected gain, in nats
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    left.plot(difference, -F.logsigmoid(beta * difference), color="#0072b2")
    left.set(ylabel="DPO loss", title="Which pairs does the loss still see?")
    right.plot(difference, beta * torch.sigmoid(-beta * difference), color="#0072b2", label="DPO term")
    right.axhline(sft_weight / 20, color="#e69f00", label="SFT term")
    right.set(ylim=(0, None), ylabel="pull per nat", title="What still pulls at the chosen answer?")
    for ax in (left, right):
        for name in arms:
            ax.axvline(ends[name, "chosen"] - ends[name, "rejected"], color=colours[name], linestyle=":")
        ax.set_xlabel("chosen gain minus rejected gain, nats")
    right.legend()
    plt.show()
    reached = ends["DPO alone", "chosen"] - ends["DPO alone", "rejected"]
    left_over = beta * torch.sigmoid(torch.tensor(-beta * reached)).item()
    print(f"where DPO alone ended ({reached:.0f} nats): DPO pulls {left_over:.4f}, SFT {sft_weight / 20:.4f} per nat")


experiment.show(
    draw,
    beta=widgets.FloatSlider(beta, min=0.01, max=0.5, step=0.01),
    sft_weight=widgets.FloatSlider(sft_weight, min=0.0, max=1.0, step=0.05),
)

# %% [markdown] id="judge-why"
# ### A second opinion: the reward model of lesson 10
# An answer can satisfy a rule and still be bad. The reward model of lesson 10 scores the answers too; if its adapter
# isn't there, a reward model is trained quickly. It has learned from the same kind of pairs: a second opinion, not an
# independent one.


# %% [markdown] id="judge-why" lang="zh" of="de90ea89"
# ### 再听一种意见：第 10 课的奖励模型
# 回答可能只是形式上符合规则。第 10 课的奖励模型也来打分；如果找不到它的适配器，就快速训练一个。它是从同类偏好对里学来的，所以这是另一种意见，但并不独立。


# %% id="judge"
def load_judge(folder="runs/10_reward_model/adapter"):
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype=dtype, device_map=where)
    base.config.pad_token_id = tokenizer.pad_token_id
    if PROFILE == "cpu" and os.path.isdir(folder):
        return PeftModel.from_pretrained(base, folder)
    judge = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS"))
    args = RewardConfig(
        output_dir="runs/12_dpo/judge",
        max_steps=side_steps,
        per_device_train_batch_size=2 * per_device_train_batch_size,
        learning_rate=5e-4,
        gradient_checkpointing=on_gpu,
        use_cpu=not on_gpu,
        bf16=False,
        save_strategy="no",
        report_to="none",
    )
    RewardTrainer(judge, args, train_dataset=train_dataset, processing_class=tokenizer).train()
    return judge


# %% id="judge-scores"
@torch.no_grad()
def rewards(judge, replies):
    chats = [turn("user", x) + turn("assistant", y) for x, y in zip(questions, replies, strict=True)]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(judge.device)
    return judge.eval()(**batch).logits.squeeze(-1).float()


judge = load_judge()
scores_before = rewards(judge, answers_before)
for name, found in results.items():
    found["won"] = (rewards(judge, found["replies"]) > scores_before).float().mean().item()
    print(f"{name:<14} beats the answer before training in {found['won']:.0%} of {len(questions)} topics")
del judge

# %% [markdown] id="family-why"
# ## Variants of DPO
# Each variant changes one thing. Their losses, for the same log-probabilities:
#
# | method | what it changes | needs a reference |
# |---|---|---|
# | IPO | aims at a fixed difference instead of "more is better" | yes |
# | KTO | single answers, liked or not, instead of pairs | yes |
# | ORPO | plain fine-tuning on the chosen side, plus an odds ratio | no |
# | SimPO | mean log-probability per token, and a margin to beat | no |
# | CPO | DPO without its reference, plus plain fine-tuning | no |


# %% [markdown] id="family-why" lang="zh" of="4a206698"
# ## DPO 的变体
# 每个变体只改一处。对于同样的对数概率，它们的损失：
#
# | 方法 | 它改变什么 | 需要参考模型 |
# |---|---|---|
# | IPO | 瞄准一个固定的差值，而不是“越大越好” | 是 |
# | KTO | 单个回答，喜欢或不喜欢，而不是成对 | 是 |
# | ORPO | 在 chosen 一边做普通微调，再加一个几率比（odds ratio） | 否 |
# | SimPO | 每个 token 的平均对数概率，以及一个要超过的间隔 | 否 |
# | CPO | 没有参考模型的 DPO，再加普通微调 | 否 |


# %% id="family-losses"
def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, chosen_len, rejected_len, beta):
    difference = (chosen - ref_chosen) / chosen_len - (rejected - ref_rejected) / rejected_len
    return ((difference - 1 / (2 * beta)) ** 2).mean()


def kto_loss(gains, liked, kl, beta):  # gains: (answers,), kl: how far the model has moved on average
    value = torch.where(liked, gains - kl, kl - gains)
    return (1 - torch.sigmoid(beta * value)).mean()


def orpo_loss(chosen_mean, rejected_mean, plain_loss, beta):  # mean log-probability per token
    odds_chosen, odds_rejected = (m - torch.log1p(-m.exp()) for m in (chosen_mean, rejected_mean))
    return plain_loss - beta * F.logsigmoid(odds_chosen - odds_rejected).mean()


def simpo_loss(chosen_mean, rejected_mean, beta, gamma):
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma).mean()


# %% [markdown] id="family-run-why"
# A first look and no ranking: a few steps each (the table says how many), on the same pairs, from the same start, at one
# learning rate; nothing was tuned. (The course's tests compare these losses with TRL's, as was done for DPO above.)
#
# **Predict before you run.** Which methods will show the style after so few steps: those with an SFT term (ORPO, CPO),
# or those without?

# %% [markdown] id="family-run-why" lang="zh" of="b43d009d"
# 只是先看一眼，不是排名：每个方法只训练几步（步数见表），偏好对相同，起点相同，学习率也是同一个，没有为任何方法调过。（课程的测试会把这些损失与 TRL 的比较，就像上面对 DPO 做的那样。）
#
# **先预测，再运行。** 这么几步之后，哪些方法会出现这种风格：带 SFT 项的（ORPO、CPO），还是不带的？

# %% id="predict-family"
guess_first = "CPO"  # your guess: the method with the largest share of preferred style

# %% id="family-settings"
keep = ("per_device_train_batch_size", "lr_scheduler_type", "max_length", "seed", "bf16", "fp16")
shared = {name: getattr(training_args, name) for name in keep} | {
    "output_dir": "runs/12_dpo/family",
    "max_steps": side_steps,
    "learning_rate": learning_rate,
    "logging_steps": side_steps,
    "save_strategy": "no",
    "gradient_checkpointing": on_gpu,
    "use_cpu": not on_gpu,
    "report_to": "none",
}
family = {
    "DPO": (DPOTrainer, DPOConfig(**shared, beta=0.1)),
    "IPO": (DPOTrainer, DPOConfig(**shared, beta=0.5, loss_type=["ipo"])),
    "KTO": (
        KTOTrainer,
        KTOConfig(**shared | {"per_device_train_batch_size": 2 * per_device_train_batch_size}, beta=0.1),
    ),
    "ORPO": (ORPOTrainer, ORPOConfig(**shared, beta=0.5)),
    "SimPO": (CPOTrainer, CPOConfig(**shared, loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=1.0)),
    "CPO": (CPOTrainer, CPOConfig(**shared, beta=0.1)),
}


# %% id="family-data"
def to_rated(row):
    completion = turn("assistant", row["output"])
    return {"prompt": turn("user", row["instruction"]), "completion": completion, "label": row["kto_tag"]}


rated = load_dataset("json", data_files="data/kto_en.jsonl", split=train_split)
kto_dataset = rated.map(to_rated, remove_columns=rated.column_names)

# %% id="family-run"
table, trainers = {}, {}
some = questions[::3]
for name, (trainer_class, args) in family.items():
    trainer = prepare(trainer_class, args, kto_dataset if name == "KTO" else train_dataset)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    replies = answers(trainer.model, some)
    table[name] = (style_share(replies), mean_length(replies), kl_per_token(trainer.model, replies), seconds)
    trainers[name] = trainer

# %% [markdown] id="family-memory-why"
# One more step of each, with the allocator's log on:

# %% [markdown] id="family-memory-why" lang="zh" of="82e5f0a5"
# 每个方法再走一步，打开内存分配器的日志：

# %% id="family-memory"
peaks = {}
for name, one in trainers.items():
    one.args.max_steps = 1
    with memory.measure_peak_bytes(one.model) as peak:
        one.train()
    peaks[name] = peak.bytes / 2**20

# %% id="family-table"
print(f"{side_steps} steps each, {len(some)} held-out topics; the memory is that of one step")
print(f"{'method':<8}{'style':>8}{'tokens':>9}{'KL':>8}{'seconds':>10}{'MiB':>8}")
for name, (share, length, kl, seconds) in table.items():
    print(f"{name:<8}{share:>8.0%}{length:>9.0f}{kl:>8.2f}{seconds:>10.0f}{peaks[name]:>8.0f}")
first = max(table, key=lambda name: table[name][0])
print(f"\nyou predicted {guess_first}, measured {first} ({table[first][0]:.0%})")

# %% [markdown] id="family-read"
# Each method has its own best learning rate and beta, and a share of 0% after so few steps may only mean "not yet".
# Read your prediction's answer with this in mind: if a method without an SFT term comes first, a few steps of
# preference alone can be enough too, and the bars above are about DPO at this beta, not about preference training in
# general. What the table does show is the cost: how far each model moved (KL) for the style that it gained.
#
# ### What does a reference cost?
# Hardly any memory here: the reference is the same weights with the adapter switched off. It costs a forward pass, so
# seconds; with full fine-tuning it would cost a second copy of the weights. What orders the last column is something
# else: the logits, (answers, tokens, vocabulary). TRL's DPO and KTO trainers compute log-probabilities in tiles and
# never hold them; its experimental ORPO and CPO trainers do, and their SFT term holds a second copy for the chosen
# half.

# %% [markdown] id="family-read" lang="zh" of="efd0cdda"
# 每种方法都有自己最合适的学习率和 beta；这么几步之后的 0% 也许只是“还没学到”。看预测的答案时也要记得这一点：如果领先的是不带 SFT 项的方法，说明只靠偏好训练几步也可能够，上面的柱状图说的只是这个 beta 下的 DPO，不是偏好训练的全部。这张表真正展示的是代价：为了得到的风格，各自走了多远（KL）。
#
# ### 参考模型要花多少内存？
# 在这里几乎不花内存：参考模型就是关掉适配器的同一份权重。它花的是一次前向计算，也就是时间；如果是全量微调，就要多存一份权重。决定最后一列顺序的是另一样东西：logits，形状为（回答数, token 数, 词表大小）。TRL 的 DPO 和 KTO 训练器分块计算对数概率，从不保存整个 logits；实验性的 ORPO 和 CPO 训练器会保存，它们的 SFT 项还要为 chosen 那一半再留一份。

# %% id="reference-cost"
weights = sum(p.numel() * p.element_size() for p in trainer.model.get_base_model().parameters() if not p.requires_grad)
longest = max(len(tokenizer(row["chosen"]).input_ids) for row in train_pairs) + 40  # and the question
logits = 2 * per_device_train_batch_size * longest * trainer.model.config.vocab_size * 4
print(f"a second copy of the weights would be {weights / 2**20:.0f} MiB")
print(f"the logits of one batch are up to {logits / 2**20:.0f} MiB in float32")
print(f"measured: CPO takes {peaks['CPO'] - peaks['DPO']:.0f} MiB more than DPO")

# %% [markdown] id="break-why"
# ## What goes wrong: pairs that differ in length alone
# Somebody collects pairs in a hurry: the chosen answer is the rejected one without its second half. Nothing about
# style. **Predict before you run:** what share of pairs will DPO alone tell apart at the end, and how long will answers
# be?

# %% [markdown] id="break-why" lang="zh" of="0d903861"
# ## 故意出错：只在长度上有差别的偏好对
# 有人匆忙收集偏好对：chosen 就是 rejected 去掉后半部分，与风格毫无关系。**先预测，再运行：** 训练结束时，只用 DPO 能分清多大比例的偏好对？回答会有多长？

# %% id="predict-break"
guess_apart = 50  # your guess, in percent: pairs told apart in the last steps
guess_tokens = 40  # your guess: tokens of an answer

# %% id="break-data"
length_pairs = [
    {
        "instruction": row["instruction"],
        "chosen": row["rejected"].split(". ")[0].rstrip(".") + ".",
        "rejected": row["rejected"],
    }
    for row in train_pairs
    if ". " in row["rejected"]
]
length_dataset = train_dataset.from_list([to_pair(row) for row in length_pairs])
print(length_pairs[0]["chosen"], length_pairs[0]["rejected"], sep="\n")

# %% id="break-train"
run = prepare(DPOTrainer, dataclasses.replace(training_args, loss_weights=[1.0, 0.0]), length_dataset)
run.train()
answers_hurried = answers(run.model, questions)
hurried_log = [row for row in run.state.log_history if "loss" in row]
last = hurried_log[-1]
print(f"you predicted {guess_apart}% of the pairs told apart, measured {last['rewards/accuracies']:.0%}")
print(f"you predicted {guess_tokens} tokens an answer, measured {mean_length(answers_hurried):.0f}")

# %% id="break-curves"
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained")
for key, label in (("loss", "DPO loss"), ("rewards/accuracies", "pairs told apart")):
    left.plot([row["step"] for row in hurried_log], [row[key] for row in hurried_log], label=label)
left.set(xlabel="optimizer step", ylim=(0, None), title="Do the curves show a fault?")
left.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
preferred_hurried = style_share(answers_hurried)
shares = {"before": preferred_before, "style pairs": results["both"]["style"], "length pairs": preferred_hurried}
plots.plot_scores(shares, len(questions), right)
right.set(ylabel="preferred style, %", title="Do the answers?")
plt.show()

# %% [markdown] id="break-read"
# A falling loss only means that the model tells the two sides apart. Whether its own answers have changed, in length or
# in style, the loss does not say. So measure both (answers are cut at the number of tokens that the profile allows):

# %% [markdown] id="break-read" lang="zh" of="b35cfaf1"
# 损失下降只说明模型能分清两边。它自己的回答在长度或风格上变没变，损失不会说。所以两样都要测（回答最多写到配置允许的 token 数）：

# %% id="break-table"
for name, replies in (
    ("before", answers_before),
    ("style pairs", results["both"]["replies"]),
    ("length pairs", answers_hurried),
):
    print(f"{name:<14} preferred style {style_share(replies):4.0%}, {mean_length(replies):3.0f} tokens")
print(questions[0], answers_hurried[0], sep="\n")

# %% [markdown] id="break-fix"
# The fix is the one of lesson 10: pairs in which the chosen answer is sometimes the longer one, and a check by something
# other than the loss.

# %% [markdown] id="break-fix" lang="zh" of="f653134e"
# 解决办法与第 10 课相同：让 chosen 回答有时是较长的那个，并且用损失以外的东西来检查。

# %% [markdown] id="exercise-loss-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 12`
# checks your saved copy of the whole lesson.
#
# **1.** Write the DPO loss of one pair of answers from the two gains (policy minus reference, in nats), as a number.
# `math` is imported.

# %% [markdown] id="exercise-loss-why" lang="zh" of="4ad09463"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 12` 检查你保存的整课练习。
#
# **1.** 用两个增益（策略减参考的对数概率，单位 nat）写出一个偏好对的 DPO 损失，结果是一个数。`math` 已导入。

# %% id="exercise-loss" tags=["exercise"]


def loss(chosen_gain, rejected_gain, beta):
    return ...  # your code


checks.check_dpo_loss(loss)

# %% [markdown] id="exercise-loss-solution"
# <details><summary>Solution</summary>
#
# ```python
# def loss(chosen_gain, rejected_gain, beta):
#     return math.log(1 + math.exp(-beta * (chosen_gain - rejected_gain)))
# ```
#
# </details>

# %% [markdown] id="exercise-loss-solution" lang="zh" of="fa65e72b"
# <details><summary>参考答案</summary>
#
# ```python
# def loss(chosen_gain, rejected_gain, beta):
#     return math.log(1 + math.exp(-beta * (chosen_gain - rejected_gain)))
# ```
#
# </details>

# %% [markdown] id="exercise-reference-why"
# **2.** Which of `dpo`, `ipo`, `kto`, `orpo`, `simpo` can be trained without a reference model? A set of names, such as
# `{"dpo"}`.

# %% [markdown] id="exercise-reference-why" lang="zh" of="6ca3259a"
# **2.** `dpo`、`ipo`、`kto`、`orpo`、`simpo` 之中，哪些训练时不需要参考模型？写成名字的集合，例如 `{"dpo"}`。

# %% id="exercise-reference" tags=["exercise"]
reference_free = ...  # your answer

checks.check_reference_free(reference_free)

# %% [markdown] id="exercise-reference-solution"
# <details><summary>Solution</summary>
#
# ```python
# reference_free = {"orpo", "simpo"}
# ```
#
# </details>

# %% [markdown] id="exercise-reference-solution" lang="zh" of="94351531"
# <details><summary>参考答案</summary>
#
# ```python
# reference_free = {"orpo", "simpo"}
# ```
#
# </details>

# %% [markdown] id="exercise-logps-why"
# **3.** Return the log-probability of an answer: the sum over its tokens. `logits` is (tokens, vocabulary), `labels`
# (tokens,) is already shifted and holds -100 where a token does not belong to the answer.

# %% [markdown] id="exercise-logps-why" lang="zh" of="71f5ef51"
# **3.** 返回一个回答的对数概率，即对其 token 求和。`logits` 是（token 数, 词表大小）；`labels`（token 数,）已经移位，不属于回答的位置为 -100。

# %% id="exercise-logps" tags=["exercise"]


def answer_logp(logits, labels):
    return ...  # your code


checks.check_answer_logp(answer_logp)

# %% [markdown] id="exercise-logps-solution"
# <details><summary>Solution</summary>
#
# ```python
# def answer_logp(logits, labels):
#     log_probabilities = logits.log_softmax(dim=-1)
#     trained = labels != -100
#     return log_probabilities[trained].gather(1, labels[trained][:, None]).sum()
# ```
#
# </details>

# %% [markdown] id="exercise-logps-solution" lang="zh" of="519098a3"
# <details><summary>参考答案</summary>
#
# ```python
# def answer_logp(logits, labels):
#     log_probabilities = logits.log_softmax(dim=-1)
#     trained = labels != -100
#     return log_probabilities[trained].gather(1, labels[trained][:, None]).sum()
# ```
#
# </details>

# %% [markdown] id="exercise-sft-why"
# **4.** Add the SFT term to DPO: the mean of `dpo_losses` plus `sft_weight` times the SFT loss per token of the chosen
# answers. `chosen_logps` holds the log-probability of each chosen answer, `lengths` its number of tokens (three
# tensors).

# %% [markdown] id="exercise-sft-why" lang="zh" of="586d8ea2"
# **4.** 给 DPO 加上 SFT 项：`dpo_losses` 的平均值，加上 `sft_weight` 乘以 chosen 回答的逐 token SFT 损失。`chosen_logps` 是每个 chosen 回答的对数概率，`lengths` 是其 token 数（三个都是张量）。

# %% id="exercise-sft" tags=["exercise"]


def loss_with_sft(dpo_losses, chosen_logps, lengths, sft_weight):
    return ...  # your code


checks.check_loss_with_sft(loss_with_sft)

# %% [markdown] id="exercise-sft-solution"
# <details><summary>Solution</summary>
#
# ```python
# def loss_with_sft(dpo_losses, chosen_logps, lengths, sft_weight):
#     return dpo_losses.mean() - sft_weight * chosen_logps.sum() / lengths.sum()
# ```
#
# </details>

# %% [markdown] id="exercise-sft-solution" lang="zh" of="eb0da0fe"
# <details><summary>参考答案</summary>
#
# ```python
# def loss_with_sft(dpo_losses, chosen_logps, lengths, sft_weight):
#     return dpo_losses.mean() - sft_weight * chosen_logps.sum() / lengths.sum()
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
full_size = PROFILE != "smoke"
anything = (0.0, 1.0)  # two steps on a shortened model promise nothing
bands = {
    "dpo_loss_max_abs_diff": (0.0, 1e-5),
    "preferred_before": (0.0, 0.3),
    "preferred_dpo": (0.0, 0.6) if full_size else anything,
    "preferred_sft": (0.8, 1.0) if full_size else anything,
    "preferred_after": (0.8, 1.0) if full_size else anything,
    "general_drop": (-0.15, 0.12) if full_size else (-1.0, 1.0),
    "preferred_hurried": (0.0, 0.3),
}
outcomes = {
    "preferred_before": preferred_before,
    "preferred_prompted": preferred_prompted,
    "preferred_dpo": results["DPO alone"]["style"],
    "preferred_dpo_low_beta": results["DPO, beta / 3"]["style"],
    "preferred_sft": results["SFT alone"]["style"],
    "preferred_after": results["both"]["style"],
    "general_before": general_before,
    "general_after": general_after["both"],
    "general_drop": general_before - general_after["both"],
    "preferred_hurried": preferred_hurried,
    "dpo_loss_max_abs_diff": dpo_loss_max_abs_diff,
    "judge_win_share": results["both"]["won"],
    "kl_per_token": results["both"]["kl"],
    "train_seconds": train_seconds,
}
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/12_dpo/both`, the adapter with the preferred style: `ftlab chat smollm2-135m --adapter
# runs/12_dpo/both` talks to it.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; both set their own, smaller learning rates.
#
# **The same from the command line:** a recipe with `stage: dpo`, `dataset: preference_en`, `pref_beta: 0.1`,
# `pref_ftx: 0.5` (the SFT weight).
#
# **Next:** many experts, few of them at work for each token: [13 · Mixture of experts](13_moe.ipynb).
# %% [markdown] id="next" lang="zh" of="a736b4c9"
# **你得到的成果：** `runs/12_dpo/both`，带有偏好风格的适配器：用 `ftlab chat smollm2-135m --adapter runs/12_dpo/both` 就能和它对话。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`，它们各有自己的、更小的学习率。
#
# **用命令行做同样的事：** 写一个配方，其中有 `stage: dpo`、`dataset: preference_en`、`pref_beta: 0.1`、`pref_ftx: 0.5`（SFT 权重）。
#
# **下一课：** 专家很多，每个 token 只用其中几个：[13 · 混合专家](13_moe.ipynb)。
