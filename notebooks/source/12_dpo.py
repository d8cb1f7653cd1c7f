# %% [markdown] id="title"
# # 12 · DPO: learning from preferences without a reward model
#
# RLHF trains a judge, then trains the model to please it. Direct preference optimisation skips the judge: the pairs train
# the model itself, with one line of loss. Here you write that line, prove it equal to the library's, teach a model a
# style in about a minute, watch what it costs, compare the whole family, and see DPO learn the wrong thing.
#
# | you will have | measured as |
# |---|---|
# | the DPO loss by hand | largest difference to TRL's, same batch |
# | a model with a preferred style | held-out questions answered in it, before and after |
# | the price | general knowledge, drift, KL |
# | the family in one table | DPO, IPO, KTO, ORPO, SimPO, CPO on the same data |
#
# **Cost:** about 6 minutes and 7 GB on two CPU cores, 5 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb);
# [10 · A reward model](10_reward_model.ipynb) helps.

# %% [markdown] id="title" lang="zh" of="29e53d54"
# # 12 · DPO：不用奖励模型，从偏好中学习
#
# RLHF 先训练一个裁判，再训练模型去讨好它。直接偏好优化（DPO）跳过裁判：成对的回答用一行损失直接训练模型本身。在这里，你写出这一行，证明它与库的相等，用约一分钟教模型一种风格，看它付出什么代价，比较整个家族，再看 DPO 学错东西。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的 DPO 损失 | 同一批数据上与 TRL 的最大差值 |
# | 一个有偏好风格的模型 | 留出问题中用该风格回答的比例，训练前与训练后 |
# | 代价 | 常识、漂移、KL |
# | 一张表里的整个家族 | 同一份数据上的 DPO、IPO、KTO、ORPO、SimPO、CPO |
#
# **耗时与内存：** 两个 CPU 核心上约 6 分钟、7 GB 内存，T4 上约 5 分钟。**先修：** [03 · LoRA](03_lora.ipynb)；[10 · 奖励模型](10_reward_model.ipynb) 会有帮助。

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
import math
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    set_seed,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from ftlab import checks, cpu, device, evaluate, memory, models, plots
from ftlab.apps import course

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
beta = 0.1  # how strongly the reference holds the model back
sft_weight = 0.5  # how strongly the chosen answer itself is held up
r = 16  # rank of the adapter
learning_rate = 4e-4
max_steps = 0  # optimizer steps; 0: the profile's own
per_device_train_batch_size = 0  # pairs per step; 0: the profile's own
seed = 0

# %% id="profile"
# Model, training rows, pairs per step, steps of the training and of a side experiment; held-out questions, tokens of
# an answer, questions of general knowledge.
profiles = {
    "smoke": ("smollm2-135m-short", "train[:10%]", 1, 2, 1, 4, 6, 12),
    "cpu": ("smollm2-135m", "train", 4, 18, 8, 63, 48, 200),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", "train", 4, 40, 20, 63, 48, 200),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", "train", 4, 40, 20, 63, 48, 200),
}
default_model, train_split, default_batch, default_steps, side_steps, *counts = profiles[PROFILE]
question_count, answer_tokens, general_count = counts
model_name = model_name or default_model
max_steps = max_steps or default_steps
per_device_train_batch_size = per_device_train_batch_size or default_batch
set_seed(seed)

# %% [markdown] id="data-why"
# ## Data: which answer is better?
# Both sides are right; they differ in style. The preferred one opens with the gist and says so; only a quick question
# ("What is the capital of Norway?") is better answered plainly. The opening is something a program can check, so that
# "better" is a number here.

# %% [markdown] id="data-why" lang="zh" of="8553affa"
# ## 数据：哪个回答更好？
# 两边都正确，区别在风格。更受偏好的那个先说要点，并且点明；只有能一语答完的问题（“挪威的首都是哪里？”）直接回答更好。开头是程序可以检查的，所以“更好”在这里是一个数。

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
# Held-out questions, about things that do not occur in training. How often does the model answer in that style already?
# The questions ask about each topic in three ways. Three phrasings of one topic are not independent, so read the intervals
# below, which count every question, as too narrow: there are a third as many topics.

# %% [markdown] id="baseline-why" lang="zh" of="1ce375ed"
# ## 先测基线
# 留出的问题，问的都是训练里没有的事物。模型现在有多少次已经用这种风格回答？每个主题用三种问法各问一次；同一主题的三种问法并不独立，而下面的置信区间把每个问题都算作一个样本，所以偏窄：主题数只有问题数的三分之一。

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
def answers(model, rows=held_out):
    """Answer every question greedily, in one batch."""
    asked = [turn("user", row["instruction"]) for row in rows]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in asked]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.eval().generate(**batch.to(model.device), max_new_tokens=answer_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def style_share(replies):
    return sum(reply.startswith("In short") for reply in replies) / len(replies)


def mean_length(replies):
    return sum(len(ids) for ids in tokenizer(replies).input_ids) / len(replies)


# %% id="before"
answers_before = answers(model)
preferred_before = style_share(answers_before)
general_before = evaluate.multiple_choice(model, tokenizer, general)
print(f"preferred style: {preferred_before:.0%}, general: {general_before:.0%}")
print(answers_before[0])

# %% [markdown] id="idea-why"
# ## The idea: the model is its own reward
# DPO's reward for an answer is `beta` times its *gain*: how much likelier the answer has become than under the frozen
# *reference*, the model as it was. Put these rewards into Bradley and Terry's formula and train the model. Of the four
# models of RLHF (policy, reference, reward model, value model) only the first two are left, and no answer is generated
# during training. Four log-probabilities, one number:

# %% [markdown] id="idea-why" lang="zh" of="0990c572"
# ## 想法：模型就是自己的奖励
# DPO 给一个回答的奖励是 `beta` 乘以它的*增益*：与冻结的*参考模型*（也就是训练前的模型）相比，这个回答的对数概率提高了多少。把两个奖励代入 Bradley-Terry 公式，训练模型。RLHF 的四个模型（策略模型、参考模型、奖励模型、价值模型）只剩前两个，训练中也不用生成回答。四个对数概率，一个数：

# %% id="literal"
chosen, rejected, ref_chosen, ref_rejected = -40.0, -62.0, -45.0, -50.0
gains = (chosen - ref_chosen, rejected - ref_rejected)
print("gains", gains, "rewards", [beta * gain for gain in gains])
print(f"loss {math.log(1 + math.exp(-beta * (gains[0] - gains[1]))):.3f}, before training {math.log(2):.3f}")

# %% [markdown] id="scratch-why"
# ### Ten lines
# First the log-probability of an answer: the sum over its tokens, the question's left out. Then the loss.


# %% [markdown] id="scratch-why" lang="zh" of="178cc272"
# ### 十行代码
# 先是一个回答的对数概率：对它的 token 求和，不算问题。然后是损失。


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
# TRL's loss on one batch, in 32-bit numbers. The reference needs no second model: switch the adapter off, and the frozen
# base is what is left. The adapter here starts at random, so that policy and reference differ.

# %% [markdown] id="parity-why" lang="zh" of="1e40c296"
# 在一批数据上看 TRL 的损失，用 32 位浮点数。参考模型不需要第二份：关掉适配器，剩下的就是冻结的基座。这里的适配器从随机值开始，所以策略与参考不同。

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
    logging_steps=1,
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
batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
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
# (`precompute_ref_log_probs=True`), instead of at every step: the same numbers, and one forward pass less in every step.

# %% [markdown] id="reference-why" lang="zh" of="cb99f79d"
# ### 得到参考值的两种办法
# 参考模型从不改变，所以它的对数概率可以在训练前一次算好（`precompute_ref_log_probs=True`），不必每一步都算：数值相同，每步少一次前向计算。

# %% id="reference"
ahead = dataclasses.replace(plain, precompute_ref_log_probs=True)
exact = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=where)
trainer = DPOTrainer(exact, args=ahead, train_dataset=four, processing_class=tokenizer, peft_config=small)
stored = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
stored = torch.cat([stored["ref_chosen_logps"], stored["ref_rejected_logps"]])
reference_max_abs_diff = (stored.sort().values - reference.sort().values).abs().max().item()
print(f"precomputed against disabled adapter: largest difference {reference_max_abs_diff:.1e} of {-stored.mean():.0f}")
assert reference_max_abs_diff <= 1e-3
del exact

# %% [markdown] id="beta-why"
# ### What beta does
# A pair pulls until `beta` times the difference of gains is comfortably above zero; then its gradient fades. With a small
# beta that takes a large difference, so the model moves far from its reference; a big one stops it early.

# %% [markdown] id="beta-why" lang="zh" of="be9cbddd"
# ### beta 做什么
# 一个偏好对会一直拉动模型，直到 `beta` 乘以增益之差稳稳大于零，之后梯度逐渐消失。beta 小，需要很大的差值才会停，模型就离参考模型更远；beta 大，早早就停下。

# %% id="beta"
difference = torch.linspace(-40, 120, 200)  # of the two gains, in nats
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for value in (0.05, 0.1, 0.5):
    ax.plot(difference, torch.sigmoid(-value * difference), label=f"beta = {value}")
ax.set(xlabel="chosen gain minus rejected gain, nats", ylabel="how hard the pair still pulls")
ax.legend()
plt.show()

# %% [markdown] id="predict"
# ## Train
# **Predict before you run:** the loss compares two answers. Must the chosen answer become *likelier* for it to fall?


# %% [markdown] id="predict" lang="zh" of="a24a3c03"
# ## 训练
# **先预测，再运行：** 损失比较的是两个回答。要让它下降，被选中的回答必须变得*更可能*吗？


# %% id="train"
del model
peft_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")


def prepare(trainer_class, args, dataset):
    """Return a trainer of TRL's with a fresh adapter on the untouched model."""
    set_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map=where
    )
    return trainer_class(base, args=args, train_dataset=dataset, processing_class=tokenizer, peft_config=peft_config)


started = time.perf_counter()
trainer = prepare(DPOTrainer, training_args, train_dataset)
trainer.train()
train_seconds = time.perf_counter() - started
policy_model = trainer.model
print(f"{train_seconds:.0f} seconds")

# %% id="curves"
log = [row for row in trainer.state.log_history if "loss" in row]
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot([row["loss"] for row in log], label="loss")
left.plot([row["rewards/accuracies"] for row in log], label="accuracy")
left.plot([row["rewards/margins"] for row in log], label="margin")
left.legend()
for side in ("chosen", "rejected"):
    right.plot([row[f"rewards/{side}"] / beta for row in log], label=side)
right.axhline(0, color="grey", linestyle=":")
right.set(ylabel="gain over the reference, nats")
right.legend()
for ax in (left, right):
    ax.set_xlabel("optimizer step")
plt.show()

# %% [markdown] id="drift-why"
# The right plot answers your prediction. DPO only asks for a *difference*: it is met just as well when both sides become
# less likely, the rejected one faster. It need not come from the opening either: every token in which the two sides differ
# counts. The settings above therefore add an SFT loss on the chosen side (`loss_type=["sigmoid", "sft"]`), a common recipe,
# and that term keeps the chosen curve up.
#
# **Which of the two terms teaches the style?** A run with both cannot tell, so take them apart: with `sft_weight = 0` the
# pairs are told apart just as well, and yet hardly an answer takes on the style. On this data the style is the SFT term's.
# DPO alone gets there with a smaller beta, such as 0.03, whose pull fades later, and pays for it with general knowledge.
# Run both, and compare the scores below.

# %% [markdown] id="drift-why" lang="zh" of="47c04a53"
# 右图回答了你的预测。DPO 只要求一个*差值*：两边都变得更不可能、rejected 那边降得更快，同样能满足；差值也不一定来自开头，两边不同的每个 token 都算数。所以上面的设置加上了对 chosen 一边的 SFT 损失（`loss_type=["sigmoid", "sft"]`），这是常见的配方，chosen 曲线就是靠这一项撑住的。
#
# **风格究竟是哪一项教会的？** 两项一起训练的结果看不出来，得拆开：设 `sft_weight = 0`，偏好对照样分得清，却几乎没有回答用上这种风格。在这份数据上，风格来自 SFT 项。只用 DPO 也能做到，但要用更小的 beta（例如 0.03），让拉力消失得更晚，代价是常识下降。两种都跑一跑，与下面的分数比较。

# %% [markdown] id="after-why"
# ## Before and after
# The rule, general knowledge, and the distance from the reference: the KL divergence per token, on the model's own
# answers. In the picture, the left bars count answers in the preferred style, the right bars correct choices. The bars
# carry their intervals: a difference of general knowledge that is smaller than these may be chance, and may be a price.


# %% [markdown] id="after-why" lang="zh" of="15e13603"
# ## 训练前与训练后
# 规则、常识，以及与参考模型的距离：在模型自己的回答上，每个 token 的 KL 散度。图中左边的柱子是用了偏好风格的回答，右边是选对的题目，都带误差线：常识的变化如果小于误差线，可能只是偶然，也可能是代价。


# %% id="kl"
@torch.no_grad()
def kl_per_token(model, replies):
    """Return the mean KL(model || reference) over the tokens of the model's own first eight answers, in nats."""
    total = count = 0
    for row, reply in zip(held_out[:8], replies, strict=False):
        chat = turn("user", row["instruction"])
        start = len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"])
        chat = chat + turn("assistant", reply)
        inputs = tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt").to(model.device)
        now = model(**inputs).logits[0, start - 1 : -2].float().log_softmax(-1)
        with model.disable_adapter():
            then = model(**inputs).logits[0, start - 1 : -2].float().log_softmax(-1)
        total, count = total + (now.exp() * (now - then)).sum().item(), count + len(now)
    return total / count


# %% id="after"
answers_after = answers(policy_model)
preferred_after = style_share(answers_after)
general_after = evaluate.multiple_choice(policy_model, tokenizer, general)
kl_after = kl_per_token(policy_model, answers_after)
print(f"preferred style: {preferred_before:.0%} -> {preferred_after:.0%}")
print(f"general:         {general_before:.0%} -> {general_after:.0%}")
print(
    f"KL per token {kl_after:.2f}, length {mean_length(answers_before):.0f} -> {mean_length(answers_after):.0f} tokens"
)
for row, old, new in list(zip(held_out, answers_before, answers_after, strict=True))[:3]:
    print(f"\n{row['instruction']}\n  before: {old}\n  after:  {new}")

# %% id="after-plot"
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
plots.plot_scores({"before": preferred_before, "after": preferred_after}, len(held_out), left)
plots.plot_scores({"before": general_before, "after": general_after}, len(general), right)
left.set_xlabel("preferred style")
right.set_xlabel("general knowledge")
plt.show()

# %% [markdown] id="judge-why"
# ### A second opinion: the reward model
# Read the samples above once more. They are about one topic, and what follows the opening may be false: the rule looks at
# the opening alone, and a model this small often states false things in either style. The judge of lesson 10 gives its own
# view; if its adapter isn't there, a quick one is trained. A judge learns from the same pairs, so it is a second opinion,
# not an independent one, and it has not been taught to check facts.


# %% [markdown] id="judge-why" lang="zh" of="2a265fd8"
# ### 第二意见：奖励模型
# 再读一遍上面的例子。它们都是同一个主题，开头之后的内容可能是错的：规则只看开头，而这么小的模型无论用哪种风格都常常说错。第 10 课的奖励模型给出自己的看法；如果找不到它的适配器，就快速训练一个。它从同样的偏好对里学习，所以算第二意见，但并不独立，也没有学过核对事实。


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
    chats = [turn("user", x["instruction"]) + turn("assistant", y) for x, y in zip(held_out, replies, strict=True)]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(judge.device)
    return judge.eval()(**batch).logits.squeeze(-1).float()


judge = load_judge()
won = (rewards(judge, answers_after) > rewards(judge, answers_before)).float().mean().item()
print(f"the judge prefers the answer after training in {won:.0%} of {len(held_out)} cases")
del judge

# %% [markdown] id="family-why"
# ## The family
# Each relative changes one thing. Losses, for the same log-probabilities:
#
# | method | what it changes | needs a reference |
# |---|---|---|
# | IPO | aims at a fixed difference instead of "more is better" | yes |
# | KTO | single answers, liked or not, instead of pairs | yes |
# | ORPO | plain fine-tuning on the chosen side, plus an odds ratio | no |
# | SimPO | mean log-probability per token, and a margin to beat | no |
# | CPO | DPO without its reference, plus plain fine-tuning | no |


# %% [markdown] id="family-why" lang="zh" of="aed97fea"
# ## 家族
# 每个变体只改一处。对于同样的对数概率，它们的损失：
#
# | 方法 | 它改变什么 | 需要参考模型 |
# |---|---|---|
# | IPO | 瞄准一个固定的差值，而不是“越多越好” | 是 |
# | KTO | 单个回答，喜欢或不喜欢，而不是成对 | 是 |
# | ORPO | 在 chosen 一边做普通微调，再加一个几率比 | 否 |
# | SimPO | 每个 token 的平均对数概率，以及一个要超过的间隔 | 否 |
# | CPO | 没有参考的 DPO，再加普通微调 | 否 |


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
# A first look and no ranking: `side_steps` steps each (the table says how many), the same number of rows, from the same
# start, at one learning rate; nothing was tuned. A share of 0% after so few steps means "not yet", not "never". (The
# course's tests compare these losses with TRL's, as was done for DPO above.)
#
# **Predict before you run:** which of them will move least?

# %% [markdown] id="family-run-why" lang="zh" of="bdaa3dc8"
# 只是先看一眼，不是排名：每个方法只训练 `side_steps` 步（步数见表），行数相同，起点相同，学习率也是同一个，没有为任何方法调过。这么几步之后的 0% 是“还没学到”，不是“学不会”。（课程的测试会把这些损失与 TRL 的比较，就像上面对 DPO 做的那样。）
#
# **先预测，再运行：** 哪一个移动得最少？

# %% id="family-settings"
keep = ("per_device_train_batch_size", "lr_scheduler_type", "max_length", "logging_steps", "seed", "bf16", "fp16")
shared = {name: getattr(training_args, name) for name in keep} | {
    "output_dir": "runs/12_dpo/family",
    "max_steps": side_steps,
    "learning_rate": learning_rate,
    "save_strategy": "no",
    "gradient_checkpointing": on_gpu,
    "use_cpu": not on_gpu,
    "disable_tqdm": True,
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


# %% id="family-trainers"
trainers = {}
for name, (trainer_class, args) in family.items():
    trainers[name] = prepare(trainer_class, args, kto_dataset if name == "KTO" else train_dataset)
    trainers[name].remove_callback(PrinterCallback)

# %% id="family-run"
table = []
some = held_out[: max(2, question_count // 3)]
for name, trainer in trainers.items():
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    replies = answers(trainer.model, some)
    table.append((name, style_share(replies), mean_length(replies), kl_per_token(trainer.model, replies), seconds))

# %% [markdown] id="family-memory-why"
# One more step of each, with the allocator's log on: what does a reference cost?

# %% [markdown] id="family-memory-why" lang="zh" of="53e10354"
# 每个方法再走一步，打开内存分配器的日志：参考模型要花多少内存？

# %% id="family-memory"
peaks = {}
for name, trainer in trainers.items():
    trainer.args.max_steps = 1
    with memory.measure_peak_bytes(trainer.model) as peak:
        trainer.train()
    peaks[name] = peak.bytes / 2**20
del trainers

# %% id="family-table"
print(f"{side_steps} steps each, {len(some)} held-out questions; the memory is that of one step")
print(f"{'method':<8}{'style':>8}{'tokens':>9}{'KL':>8}{'seconds':>10}{'MiB':>8}")
for name, share, length, kl, seconds in table:
    print(f"{name:<8}{share:>8.0%}{length:>9.0f}{kl:>8.2f}{seconds:>10.0f}{peaks[name]:>8.0f}")

# %% [markdown] id="family-read"
# The smallest KL answers your prediction. Read the table as one experiment, not as a ranking: each method has its own best
# learning rate and beta. What it does show is a price: how far each moved (KL) for the style that it gained.
#
# The last column is not the price of a reference. Here the reference is the same weights with the adapter switched off:
# it costs a forward pass, hardly any memory. (With full fine-tuning it would be a second copy of the weights.) What orders
# the column is the logits, (answers, tokens, vocabulary): TRL's DPO and KTO trainers compute log-probabilities in tiles
# and never hold them all, its experimental ORPO and CPO trainers do.

# %% [markdown] id="family-read" lang="zh" of="0c5c2993"
# KL 最小的那个回答了你的预测。把这张表当作一次实验，而不是排名：每种方法都有自己最合适的学习率和 beta。它真正展示的是价格：为了得到的风格，各自走了多远（KL）。
#
# 最后一列并不是参考模型的价格。在这里，参考模型就是关掉适配器的同一份权重：它花的是一次前向计算，几乎不花内存。（如果是全参数微调，就要多存一份权重。）决定这一列顺序的是 logits，形状为（回答数, token 数, 词表大小）：TRL 的 DPO 和 KTO 训练器分块计算对数概率，从不保存整个 logits；实验性的 ORPO 和 CPO 训练器会保存。

# %% [markdown] id="break-why"
# ## What goes wrong: DPO that learns only length
# Somebody collects pairs in a hurry: the chosen answer is the rejected one without its second half. Nothing about
# style. **Predict before you run:** what will the training curves look like?

# %% [markdown] id="break-why" lang="zh" of="3b46bcc3"
# ## 故意出错：只学会长度的 DPO
# 有人匆忙收集偏好对：被选中的回答就是被拒绝的回答去掉后半部分。与风格毫无关系。**先预测，再运行：** 训练曲线会是什么样子？

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
run = prepare(DPOTrainer, training_args, length_dataset)
run.train()
answers_hurried = answers(run.model)
last = [row for row in run.state.log_history if "loss" in row][-1]
print(f"last step: loss {last['loss']:.2f}, accuracy {last['rewards/accuracies']:.0%}")

# %% [markdown] id="break-read"
# The accuracy says: success. (The printed loss contains the SFT term too, so it doesn't go to zero.) It only means that
# the model tells the two sides apart; by which cue, neither number says. Measure length and style separately:

# %% [markdown] id="break-read" lang="zh" of="05e770d1"
# 准确率说：成功。（打印的损失还包含 SFT 项，所以不会降到零。）这只说明模型能分清两边；凭哪条线索，两个数都不会说。把长度和风格分开来测：

# %% id="break-table"
preferred_hurried = style_share(answers_hurried)
for name, replies in (("before", answers_before), ("style pairs", answers_after), ("length pairs", answers_hurried)):
    print(f"{name:<14} preferred style {style_share(replies):4.0%}, {mean_length(replies):3.0f} tokens")
print(answers_hurried[0])

# %% [markdown] id="break-mend"
# The cure is the one of lesson 10: pairs in which the chosen answer is sometimes the longer one, and a check by something
# that is not the loss.

# %% [markdown] id="break-mend" lang="zh" of="1d256bed"
# 治法与第 10 课相同：让被选中的回答有时是较长的那个，并且用损失以外的东西来检查。

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
assert dpo_loss_max_abs_diff <= 1e-5
assert log[-1]["rewards/margins"] > log[0]["rewards/margins"] or not full_size
assert preferred_before <= 0.3
assert preferred_after >= 0.8 or not full_size
assert general_before - general_after <= 0.05 or not full_size
assert preferred_hurried <= 0.3
outcomes = {
    "preferred_before": preferred_before,
    "preferred_after": preferred_after,
    "general_before": general_before,
    "general_after": general_after,
    "dpo_loss_max_abs_diff": dpo_loss_max_abs_diff,
    "judge_win_share": won,
    "kl_per_token": kl_after,
    "train_seconds": train_seconds,
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; bigger models want a smaller step, start at `learning_rate = 5e-5` and 1e-5.
#
# **The same from the command line:** a recipe with `stage: dpo`, `dataset: preference_en`, `pref_beta: 0.1`.
# %% [markdown] id="next" lang="zh" of="7c179b5f"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；更大的模型需要更小的步子，从 `learning_rate = 5e-5` 和 1e-5 开始。
#
# **同样的事从命令行做：** 一个写有 `stage: dpo`、`dataset: preference_en`、`pref_beta: 0.1` 的配方。
