# %% [markdown] id="title"
# # 11 · PPO and GRPO: learning from a reward
#
# Until now somebody had to write the right answer down. Here a program only *checks*: the model writes several answers,
# the program says how good each one is, and training makes the good ones likelier. You start from a model that is often
# wrong, build GRPO's loss, prove it equal to TRL's, train with it, train with PPO, RLOO and GRPO on equal budgets, then
# watch a reward that can be cheated, and last try one that a model gives.
#
# | you will have | measured as |
# |---|---|
# | a weak model and its headroom | exact answers in one try and in eight |
# | the GRPO loss by hand | largest difference to TRL's, same batches; it trains a model |
# | PPO, RLOO and GRPO on one task | exact answers to held-out messages, with intervals; KL, completions, seconds |
# | a model that cheats its reward | the reward that is paid beside the share of right answers |
# | a learned judge as the reward | what it pays for, and what that does to right answers |
#
# **Cost:** about 8 minutes (20 without bfloat16) and 6 GB on two CPU cores; not measured on a GPU. **Before this:**
# [03 · LoRA](03_lora.ipynb); for the judge, [10 · A reward model](10_reward_model.ipynb).

# %% [markdown] id="title" lang="zh" of="9edaecf5"
# # 11 · PPO 与 GRPO：从奖励中学习
#
# 到目前为止，总得有人写出正确答案。这一课里程序只负责*检查*：模型写出几个回答，程序给每个打分，训练让好的回答概率变大。你从一个经常答错的模型出发，亲手写出 GRPO 的损失，证明它与 TRL 的一致，用它训练；再在相同预算下用 PPO、RLOO 和 GRPO 训练；然后看一个有空子可钻的奖励怎样出问题，最后试一个由模型给出的奖励。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 一个较弱的模型，以及它的提升空间 | 写一次、写八次时完全正确的比例 |
# | 手写的 GRPO 损失 | 同样的批次上与 TRL 的最大差值；用它真的训练了模型 |
# | 同一任务上的 PPO、RLOO 和 GRPO | 留出消息中完全正确的比例（带置信区间）；KL、回答数、秒数 |
# | 一个钻奖励空子的模型 | 得到的奖励，与正确回答的比例对照 |
# | 用学出来的裁判当奖励 | 它按什么给分，正确回答因此怎样变化 |
#
# **耗时与内存：** 两个 CPU 核心上约 8 分钟（不支持 bfloat16 时约 20 分钟）、6 GB 内存；未在 GPU 上测过。**先修：** [03 · LoRA](03_lora.ipynb)；裁判一节需要 [10 · 奖励模型](10_reward_model.ipynb)。

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
import inspect
import json
import os
import re
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import (
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from ftlab import checks, cpu, device, evaluate, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment
from ftlab.runs import ppo

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
num_generations = 8  # completions per message, compared with each other
temperature = 1.0  # of the completions that are written while training
beta = 0.02  # price of one nat of distance from the model that training starts with
reward_weights = [1.0, 1.0]  # of exact and valid
learning_rate = 0.0  # of PPO, RLOO and GRPO; 0: the profile's own
r = 16  # rank of the adapters
seed = 0

# %% id="profile"
profiles = {  # model, learning rate, SFT steps, batches of completions, of a side run, completions each, messages, tokens
    "smoke": ("smollm2-135m-short", 3e-4, 1, 1, 1, 8, 4, 6),
    "cpu": ("smollm2-135m", 3e-4, 16, 8, 8, 32, 120, 8),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 1e-4, 16, 8, 8, 32, 120, 8),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 3e-5, 16, 8, 8, 32, 120, 8),
}
default_model, default_rate, sft_steps, batches, side_batches, batch_size, asked, max_completion_length = profiles[
    PROFILE
]
model_name = model_name or default_model
learning_rate = learning_rate or default_rate
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("preference", ax)
plt.show()

# %% [markdown] id="data-why"
# ## The task: when is it collected?
# The messages of lesson 03, and one field of the order: answer with the pick-up time, or with `null` if the message
# does not state one. A few tokens an answer, so that a CPU can write hundreds of them. 200 messages come with a
# demonstration and start the model off (SFT), but the demonstrations were written in a hurry: two of three say `null`
# whatever the message says. (We planted this fault, so that there is something to repair.) The other training messages
# have no answer that the model ever sees: only the reward looks at it. The held-out messages use sentence forms that no
# training message has.

# %% [markdown] id="data-why" lang="zh" of="1a89e841"
# ## 任务：几点来取？
# 还是第 03 课的消息，只问订单的一个字段：回答取货时间，消息里没说就回答 `null`。每个回答只有几个 token，CPU 上也能生成几百个。200 条消息带着示范答案，用来让模型入门（SFT），但示范写得匆忙：三条里有两条不管消息说了什么都写 `null`（这个错误是我们故意埋下的，好让奖励有东西可修）。其余训练消息的答案模型从来看不到，只有奖励函数会去核对。留出的消息所用的句式，训练消息里都没有出现过。数据是英文的：内置的小模型只会英文。

# %% id="data"
question = "Pick-up time? Answer with the time or null."


def to_row(row):
    prompt = [{"role": "user", "content": f"{question}\n{row['input']}"}]
    return {"prompt": prompt, "answer": json.loads(row["output"])["time"] or "null"}


def hurry(row, number):
    """Demonstrate the right answer to every third message, null to the others."""
    return {"completion": [{"role": "assistant", "content": "null" if number % 3 else row["answer"]}]}


orders = load_dataset("json", data_files={"train": "data/orders_train.jsonl", "eval": "data/orders_eval.jsonl"})
orders = orders.map(to_row, remove_columns=orders["train"].column_names)
demonstrations = orders["train"].select(range(200)).map(hurry, with_indices=True)
train_dataset = orders["train"].select(range(200, len(orders["train"])))
held_out = orders["eval"].select(range(asked))
print(len(demonstrations), "demonstrations,", len(train_dataset), "messages for the reward,", len(held_out), "held out")
for row in demonstrations.filter(lambda row: row["answer"] != "null").select(range(3)):
    demonstrated = row["completion"][0]["content"]
    print(f"\n{row['prompt'][0]['content']}\n  right: {row['answer']}, demonstrated: {demonstrated}")

# %% [markdown] id="reward-why"
# ## Two rewards
# A reward function gets the completions and the data set's other columns, and returns one number per completion. `exact`
# is what we want: the right answer, to the letter. `valid` gives credit for the form: a time or `null`. Training gets the
# weighted sum of both.

# %% [markdown] id="reward-why" lang="zh" of="e3ba82e6"
# ## 两个奖励
# 奖励函数拿到一批回答和数据集的其他列，为每个回答返回一个数。`exact` 是我们真正想要的：答案一字不差。`valid` 只为格式给分：是一个时间或 `null`。训练用的是两者的加权和。


# %% id="reward"
def exact(completions, answer, **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [float(text.strip() == right) for text, right in zip(texts, answer, strict=True)]


def valid(completions, **columns):
    texts = [completion[0]["content"].strip() for completion in completions]
    return [float(re.fullmatch(r"\d\d?:\d\d|null", text) is not None) for text in texts]


for text in (held_out[0]["answer"], "17:45", "Somebody will collect it."):
    said = [[{"role": "assistant", "content": text}]]
    print(exact(said, [held_out[0]["answer"]])[0], valid(said)[0], text)

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# What prompting can do: the untrained model sees two messages with their right answers before each new one.
# Then a short SFT on the hurried demonstrations. SFT imitates what it is given, faults included.

# %% [markdown] id="baseline-why" lang="zh" of="6817fd75"
# ## 先测基线
# 先看提示能做到什么程度：未训练的模型在每条新消息前先看到两条消息和它们的正确答案（few-shot）。然后在写得匆忙的示范上做一次短 SFT。SFT 模仿给它的一切，连同其中的错误。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def load_model(path, dtype=dtype):
    set_seed(seed)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention, device_map=where)


# %% id="answers"
def answers(model, prompts, max_new_tokens=max_completion_length):
    """Answer conversations greedily, in one batch."""
    texts = tokenizer.apply_chat_template(list(prompts), add_generation_prompt=True, tokenize=False)
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.eval().generate(
        **batch.to(model.device), max_new_tokens=max_new_tokens, do_sample=False, use_cache=True
    )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def exact_share(texts):
    """Return the share of answers to the held-out messages that are exactly right."""
    return sum(exact([[{"content": text}] for text in texts], held_out["answer"])) / len(texts)


# %% id="prompted"
solved = [
    turn
    for row in demonstrations.select([2, 3])  # one states a time, one does not
    for turn in (*row["prompt"], {"role": "assistant", "content": row["answer"]})
]
prompted = answers(load_model(model_path), [solved + prompt for prompt in held_out["prompt"]])
replies = {"two examples\nin the prompt": prompted}

# %% id="settings"
shared = {
    "save_strategy": "no",
    "gradient_checkpointing": on_gpu,
    "use_cpu": not on_gpu,
    "bf16": on_gpu and dtype == "bfloat16",
    "fp16": on_gpu and dtype == "float16",
    "report_to": "none",
    "seed": seed,
}
peft_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")

# %% id="sft"
sft_args = SFTConfig(
    output_dir="runs/11_ppo_grpo/sft",
    max_steps=sft_steps,
    per_device_train_batch_size=8,
    learning_rate=1e-3,
    max_length=256,  # tokens per example
    logging_steps=max(1, sft_steps // 4),
    **shared,
)
trainer = SFTTrainer(
    load_model(model_path),
    sft_args,
    train_dataset=demonstrations.remove_columns("answer"),
    processing_class=tokenizer,
    peft_config=peft_config,
)
trainer.train()
start = trainer.model.merge_and_unload()
start.save_pretrained("runs/11_ppo_grpo/start")
replies["after\nSFT"] = answers(start, held_out["prompt"])
start_share = exact_share(replies["after\nSFT"])
for label, texts in replies.items():
    low, high = evaluate.interval(exact_share(texts), len(texts))
    print(f"{label.replace(chr(10), ' '):<30} exact {exact_share(texts):.0%} (95% interval {low:.0%} to {high:.0%})")
taught = [row["completion"][0]["content"] for row in demonstrations if row["answer"] != "null"]
wrote = [text for text, right in zip(replies["after\nSFT"], held_out["answer"], strict=True) if right != "null"]
print("\nnull although the message states a time:", end=" ")
print(
    f"{taught.count('null') / len(taught):.0%} of the demonstrations, {wrote.count('null') / len(wrote):.0%} of answers"
)
for row, text in zip(held_out.select(range(4)), replies["after\nSFT"], strict=False):
    print(f"\n{row['prompt'][0]['content'].splitlines()[1]}\n  right: {row['answer']}, wrote: {text}")

# %% [markdown] id="headroom-why"
# ## Is there headroom?
# A reward only strengthens what the model already writes *sometimes*. So ask it several times, at random: *pass@1* is
# the share of single completions that are right, *pass@8* the share of messages with at least one right completion out
# of eight. If pass@8 is not above pass@1, there is nothing to strengthen; better demonstrations are needed first.
#
# **Predict before you run:** you have just read the share of exact answers. What will pass@8 be?

# %% [markdown] id="headroom-why" lang="zh" of="18be861b"
# ## 有提升空间吗？
# 奖励只能强化模型*有时*已经写得出的东西。所以让它随机地多写几次：*pass@1* 是单个回答正确的比例，*pass@8* 是有多大比例的消息，八个回答里至少有一个正确。如果 pass@8 并不高于 pass@1，就没有东西可强化，应当先准备更好的示范。
#
# **先预测，再运行：** 你刚刚看到了完全正确的比例。pass@8 会是多少？

# %% id="predict"
guess_pass_at_8 = 50  # your guess, in percent


# %% id="sample"
def sample(model, rows):
    """Write `num_generations` completions to each row's prompt; return the batch, named as TRL does, and the texts."""
    chats = tokenizer.apply_chat_template(list(rows["prompt"]), add_generation_prompt=True, tokenize=False)
    chats = [chat for chat in chats for _ in range(num_generations)]
    prompts = tokenizer(chats, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.eval().generate(
        **prompts.to(model.device),
        max_new_tokens=max_completion_length,
        do_sample=True,
        temperature=temperature,
        top_k=0,  # from the whole distribution: the log-probabilities are of it
        use_cache=True,
    )
    written = output[:, prompts["input_ids"].shape[1] :]
    ends = (written == tokenizer.eos_token_id).long()
    batch = {"prompt_ids": prompts["input_ids"], "prompt_mask": prompts["attention_mask"], "completion_ids": written}
    batch["completion_mask"] = (ends.cumsum(1) - ends == 0).long()  # up to the first end token, and that one too
    return batch, tokenizer.batch_decode(written, skip_special_tokens=True)


def score(rows, texts):
    """Return the rewards of completions, (rewards, completions): exact and valid."""
    said, right = [[{"content": text}] for text in texts], [a for a in rows["answer"] for _ in range(num_generations)]
    return torch.tensor([exact(said, right), valid(said)])


# %% id="answer-headroom"
some = held_out.select(range(min(24, asked)))
start_batch, texts = sample(start, some)
scores = score(some, texts).view(2, -1, num_generations)  # (rewards, messages, completions)
pass_at_1, pass_at_8 = scores[0].mean().item(), scores[0].amax(1).mean().item()
print(f"pass@1 {pass_at_1:.0%}, pass@{num_generations} {pass_at_8:.0%} of {len(some)} messages")
print(f"you predicted {guess_pass_at_8}%, measured {pass_at_8:.0%}")

# %% [markdown] id="idea-why"
# ## The idea: advantages relative to the group
# A completion's *advantage* is its reward compared with its group's: make the tokens of the good ones likelier, those
# of the bad ones less likely. GRPO subtracts the group's mean and divides by its standard deviation. A group in which
# all rewards are equal has nothing to teach. Here is one real group: eight completions of one message from the model
# above.

# %% [markdown] id="idea-why" lang="zh" of="f7b2acb2"
# ## 思路：相对于同组的优势
# 一个回答的*优势*（advantage）表示它的奖励比同组高多少或低多少：训练让好回答的 token 概率变大，坏回答的变小。GRPO 减去组内均值，再除以组内标准差。如果一组里奖励全都相等，就没有什么可学。下面是真实的一组：上面那个模型对同一条消息写的八个回答。


# %% id="group-advantages"
def group_advantages(rewards, num_generations):  # rewards: (messages * num_generations,)
    groups = rewards.view(-1, num_generations)
    spread = groups.std(1, keepdim=True)
    return ((groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)).view(-1)


totals = (torch.tensor(reward_weights)[:, None, None] * scores).sum(0)  # (messages, completions)
chosen = totals.std(1).argmax().item()  # the message whose completions differ most
group_scores, group_texts = scores[:, chosen], texts[chosen * num_generations :][:num_generations]
print(some[chosen]["prompt"][0]["content"].splitlines()[1], some[chosen]["answer"], "", sep="\n")
print("exact  valid  reward  advantage")
for row in zip(
    *group_scores.tolist(), totals[chosen], group_advantages(totals[chosen], num_generations), group_texts, strict=True
):
    print("{:>5.0f}{:>7.0f}{:>8.1f}{:>11.2f}  {}".format(*row))

# %% [markdown] id="ladder-why"
# ### Four methods compared
# All of them push up the log-probability of a completion's tokens by its advantage. They differ in what a completion
# is compared with (the *baseline*), in whether a step may be repeated on the same completions (*ratio and clip*), and
# in where the penalty on the distance from the starting model enters (*KL*).
#
# | | baseline | ratio and clip | KL |
# |---|---|---|---|
# | REINFORCE (Williams 1992) | none, or a running mean | no: one step per batch | not part of it |
# | RLOO (Kool et al. 2019; Ahmadian et al., arXiv:2402.14740) | mean of the *other* completions of the prompt | TRL: on the whole completion | in the reward, per completion |
# | PPO (arXiv:1707.06347) | the prediction of a value head, token by token | per token | in the reward, per token |
# | GRPO (arXiv:2402.03300) | mean of the group, divided by its standard deviation | per token | in the loss, per token |
#
# The same eight rewards through three baselines; PPO's needs a value head and follows below:

# %% [markdown] id="ladder-why" lang="zh" of="7f2e0e90"
# ### 四种方法的比较
# 它们都按优势推高一个回答里各 token 的对数概率。区别在于：回答与什么相比（*基线*，baseline），同一批回答能不能重复用来更新（*比率与裁剪*，ratio and clip），以及偏离起始模型的惩罚加在哪里（*KL*）。
#
# | | 基线 | 比率与裁剪 | KL |
# |---|---|---|---|
# | REINFORCE（Williams 1992） | 没有，或一个滑动平均 | 没有：每批只更新一步 | 不包含 |
# | RLOO（Kool 等 2019；Ahmadian 等，arXiv:2402.14740） | 同一提示*其他*回答的均值 | TRL：按整个回答 | 在奖励里，按回答 |
# | PPO（arXiv:1707.06347） | 价值头（value head）的逐 token 预测 | 逐 token | 在奖励里，逐 token |
# | GRPO（arXiv:2402.03300） | 组内均值，再除以标准差 | 逐 token | 在损失里，逐 token |
#
# 同样八个奖励，用三种基线各算一遍；PPO 的基线需要价值头，放在后面：

# %% id="ladder"
group = totals[chosen]
others = (group.sum() - group) / (num_generations - 1)
advantages = {"REINFORCE": group, "RLOO": group - others, "GRPO": group_advantages(group, num_generations)}
for method, values in advantages.items():
    print(f"{method:<10}", *(f"{value:>6.2f}" for value in values), f"   sum {values.sum():.2f}")

# %% [markdown] id="ladder-read"
# These rewards are never negative, so without a baseline no completion is pushed down, wrong ones included; what is
# learned is only that better ones are pushed up *more*, and that needs many samples. With a baseline the advantages of
# a group add up to zero.

# %% [markdown] id="ladder-read" lang="zh" of="0077da9d"
# 这些奖励都不是负数，所以没有基线时，没有回答会被压低，错的也不会；区别只是好回答被推得*更高*，要学到这一点需要大量样本。有了基线，一组优势之和为零。

# %% [markdown] id="loss-why"
# ### GRPO's loss in a few lines
# The *ratio* says how much likelier a token has become since it was written. It is *clipped*: beyond 20% the loss has
# no gradient, so one batch cannot move the model far. And a penalty of `beta` times the KL divergence from the
# reference, the model without its adapter, is added for every token.

# %% [markdown] id="loss-why" lang="zh" of="c328a6e4"
# ### 几行代码：GRPO 的损失
# *比率*是一个 token 现在的概率与写下它时的概率之比。它会被*裁剪*：超过 20% 就不再有梯度，所以一批数据不会让模型变化太大。每个 token 还要加上 `beta` 乘以与参考模型（去掉适配器的模型）的 KL 散度，作为惩罚。


# %% id="grpo-loss"
def grpo_loss(logps, old_logps, ref_logps, advantages, mask, epsilon, beta):  # logps, mask: (B, T), advantages: (B,)
    ratio = torch.exp(logps - old_logps)
    gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None])
    kl = ratio * (torch.exp(ref_logps - logps) - (ref_logps - logps) - 1)  # times the ratio: its slope is the KL's own
    per_token = beta * kl - gain
    return ((per_token * mask).sum(1) / mask.sum(1)).mean()


# %% [markdown] id="predict-gradient"
# ### "My loss is 0. Is it broken?"
# Right after writing, every ratio is 1 and a group's advantages add up to 0, so this loss is 0 *whatever the rewards are*;
# what trains is its gradient. **Predict before you run:** four completions, of which only the first was rewarded. Which of
# them get a gradient?

# %% [markdown] id="predict-gradient" lang="zh" of="6567a1d7"
# ### “我的损失是 0，是不是坏了？”
# 刚写完时，每个比率都是 1，一组优势之和为 0，所以*不管奖励是多少*，这个损失都是 0；起训练作用的是它的梯度。**先预测，再运行：** 四个回答，只有第一个得了奖励。哪些回答会得到梯度？

# %% id="predict-zero"
guess_gradient = [True, False, False, False]  # your guess, one per completion

# %% id="answer-zero"
logps = torch.full((4, 6), -1.0, requires_grad=True)
mask = torch.tensor([[1, 1, 0, 0, 0, 0]] + 3 * [[1, 1, 1, 1, 1, 1]])  # the first completion has 2 tokens, the others 6
advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)
loss = grpo_loss(logps, logps.detach(), logps.detach(), advantages, mask, epsilon=0.2, beta=0.0)
loss.backward()
print(
    f"loss {loss.abs().item():.4f}; gradient of each completion's first token:", *(f"{g:.3f}" for g in logps.grad[:, 0])
)
print("you predicted", guess_gradient, "measured", (logps.grad[:, 0] != 0).tolist())
per_token_mean = -(advantages[:, None] * mask).sum() / mask.sum()
print(f"the same with a mean over all tokens of the batch: loss {per_token_mean:.2f}")

# %% [markdown] id="zero-read"
# The 0 belongs to `loss_type="grpo"`, which takes the mean of each completion first. That has a side effect, *length
# bias*: a token of the 2-token completion weighs three times as much as one of a 6-token completion, so a long wrong
# answer is punished less per token than a short one. TRL's default takes the mean over all tokens of a batch instead
# (`dapo`), and there the loss is not 0. These are TRL's defaults, and what this lesson sets in their place is in the
# settings below:

# %% [markdown] id="zero-read" lang="zh" of="a68dd981"
# 损失为 0 只对 `loss_type="grpo"` 成立，它先在每个回答内部取平均。这有一个副作用，叫*长度偏差*（length bias）：2 个 token 的回答里，每个 token 的权重是 6 个 token 的回答里的三倍，所以同样是错，长回答的每个 token 受的惩罚比短回答轻。TRL 的默认值是对一批里所有 token 取平均（`dapo`），那时损失就不是 0。下面是 TRL 的默认值；本课改了哪些，见后面的设置：

# %% id="defaults"
names = ("loss_type", "beta", "num_iterations", "epsilon", "temperature", "num_generations", "scale_rewards")
print({field.name: field.default for field in dataclasses.fields(GRPOConfig) if field.name in names})

# %% [markdown] id="parity-why"
# ### The same as TRL's
# TRL's trainer computes its loss in `compute_loss`. This subclass computes yours on the same batch and compares. With
# `num_iterations=3` each batch of completions is used for three optimizer steps: in the first one every ratio is exactly 1,
# so the clip does nothing. The default, `num_iterations=1`, uses a batch for that step alone: **the clip never acts**.

# %% [markdown] id="parity-why" lang="zh" of="ab9cfab0"
# ### 与 TRL 一致
# TRL 的训练器在 `compute_loss` 里算损失。下面的子类在同一批数据上再用你的函数算一遍并比较。`num_iterations=3` 表示每批回答用来更新三步：第一步时所有比率恰好是 1，裁剪不起作用；而默认的 `num_iterations=1` 没有第二步，**裁剪从不生效**。


# %% id="token-logps"
def token_log_probabilities(model, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    written = batch["completion_ids"].shape[1]
    # A position's logits are those of the next token: start one position early, drop the last.
    output = model(input_ids=ids, attention_mask=seen, logits_to_keep=written + 1)
    logits = output.logits[:, :-1].float() / temperature
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None]).squeeze(-1)  # (B, T)


# %% id="parity"
differences = []


def characters(completions, **columns):  # any reward that differs within a group
    return [float(len(completion[0]["content"])) for completion in completions]


class Compared(GRPOTrainer):
    """TRL's trainer, which also computes the loss by hand."""

    def compute_loss(self, model, inputs, **others):
        theirs = super().compute_loss(model, inputs, **others).item()
        policy, mask = token_log_probabilities(model, inputs), inputs["completion_mask"]
        old, reference = inputs["old_per_token_logps"], inputs["ref_per_token_logps"]
        loss = grpo_loss(policy, old, reference, inputs["advantages"], mask, epsilon=0.2, beta=self.beta)
        clipped = (((policy - old).exp() - 1).abs() > 0.2).float().mul(mask).sum() / mask.sum()
        print(f"TRL {theirs:.6f}, by hand {loss.item():.6f}; ratio outside 0.8 to 1.2: {clipped:.0%} of tokens")
        differences.append(abs(theirs - loss.item()))
        return loss  # yours trains


args = GRPOConfig(
    output_dir="runs/11_ppo_grpo/parity",
    max_steps=3,
    per_device_train_batch_size=4,
    num_generations=4,
    num_iterations=3,
    loss_type="grpo",
    beta=0.1,
    learning_rate=3e-3,  # high, so that the ratios leave 1 at once
    temperature=temperature,
    max_completion_length=8,
    logging_steps=3,
    **shared,
)
small = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
exact_model = load_model("runs/11_ppo_grpo/start", dtype=torch.float32)
Compared(exact_model, characters, args, train_dataset, processing_class=tokenizer, peft_config=small).train()
grpo_loss_max_abs_diff = max(differences)
assert grpo_loss_max_abs_diff <= 1e-5

# %% [markdown] id="own-why"
# ### Train with your own loss
# The whole method in one loop: sample, score, compare, step. Two messages, the same ones in every step, so that a few
# steps show it; both state a time.

# %% [markdown] id="own-why" lang="zh" of="b0a5beed"
# ### 用你自己的损失训练
# 整个方法就是一个循环：采样、打分、比较、更新。只用两条消息，每一步都是这两条，这样几步就看得出效果；两条都写明了时间。

# %% id="own-loop"
policy_model = get_peft_model(load_model("runs/11_ppo_grpo/start"), peft_config)
optimizer = torch.optim.AdamW([w for w in policy_model.parameters() if w.requires_grad], lr=learning_rate)
two = train_dataset.filter(lambda row: row["answer"] != "null").select(range(2))
own_curve = []
for step in range(side_batches):
    batch, texts = sample(policy_model, two)
    rewards = score(two, texts)
    advantages = group_advantages(torch.tensor(reward_weights) @ rewards, num_generations).to(where)
    with torch.no_grad(), policy_model.disable_adapter():
        reference = token_log_probabilities(policy_model, batch)
    policy = token_log_probabilities(policy_model, batch)
    loss = grpo_loss(policy, policy.detach(), reference, advantages, batch["completion_mask"], epsilon=0.2, beta=beta)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    own_curve.append(rewards.mean(1).tolist())
    print(f"step {step + 1}: exact {own_curve[-1][0]:.0%}, valid {own_curve[-1][1]:.0%}, loss {loss.item():+.4f}")

# %% [markdown] id="ppo-why"
# ## PPO: a value head instead of a group
# PPO writes one completion per message. It compares the reward with the prediction of a *value head*, one number per
# token from the same forward pass. Head and policy share the adapter here, so the head's loss moves the policy a
# little too. The *generalized advantage estimate* (GAE) is computed from the last token to the first: how much better
# was the outcome than predicted at this token? TRL no longer ships PPO; `ftlab/runs/ppo.py` is one that you can read.
# Its advantage:

# %% [markdown] id="ppo-why" lang="zh" of="a34d1ac7"
# ## PPO：用价值头代替分组
# PPO 对每条消息只写一个回答。它把奖励与*价值头*（value head）的预测相比：价值头在同一次前向计算里为每个 token 给出一个数。这里价值头与策略共用适配器，所以价值头的损失也会稍微推动策略。*广义优势估计*（GAE）从最后一个 token 往前算：在这个 token 上，结果比预测好多少？TRL 已不再提供 PPO；`ftlab/runs/ppo.py` 是一个读得懂的实现。它的优势函数：

# %% id="gae"
print(inspect.getsource(ppo.gae))
rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
for lam in (1.0, 0.5, 0.0):
    print(f"lam {lam}:", *(f"{a:.2f}" for a in ppo.gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=lam)[0]))

# %% [markdown] id="gae-read"
# Only the last token is rewarded. At `lam = 1` every token gets the whole difference between the reward and the
# prediction at that token; at `lam = 0` each token only gets the change of the prediction at its own step, which
# carries no information while the head is untrained. Here the head is new and the reward is only a few tokens away,
# so this lesson uses `lam = 1`.

# %% [markdown] id="gae-read" lang="zh" of="9f005c4e"
# 只有最后一个 token 有奖励。`lam = 1` 时，每个 token 得到的是最终奖励与该处预测的全部差值；`lam = 0` 时，每个 token 只得到自己这一步上预测的变化，价值头还没训练时这里面没有信息。价值头是新的，离奖励只有几个 token，所以本课取 `lam = 1`。

# %% [markdown] id="train-why"
# ## The same budget for all
# PPO, RLOO and GRPO get the same number of completions and of optimizer steps, one per batch, so that no clip acts;
# the same adapter, learning rate and `beta`, none of them tuned for one method. What differs: PPO answers as many
# messages as RLOO and GRPO write completions, each once; and the KL penalty `beta` applies per token in PPO and GRPO,
# per completion in RLOO. On a CPU, the fast paths compute a prefix that the rows of a batch share once: numerically
# equivalent, only faster.

# %% [markdown] id="train-why" lang="zh" of="c3a38698"
# ## 预算相同
# PPO、RLOO 和 GRPO 的回答总数和更新步数都相同，每批只更新一步，所以谁的裁剪都不生效；适配器、学习率和 `beta` 也相同，没有为哪一种方法单独调过。不同的是：RLOO 和 GRPO 写多少个回答，PPO 就回答多少条消息，每条一次；KL 惩罚 `beta` 在 PPO 和 GRPO 里按 token 计，在 RLOO 里按整个回答计。在 CPU 上，快速路径对同一批里共有的前缀只计算一次：数值上等价，只是更快。

# %% id="budget"
logs, seconds = {}, {}
rollouts = shared | {
    "per_device_train_batch_size": batch_size,  # completions
    "max_completion_length": max_completion_length,
    "temperature": temperature,
    "learning_rate": learning_rate,
    "lr_scheduler_type": "constant",
}

# %% id="ppo-train"
ppo_args = ppo.PPOConfig(
    output_dir="runs/11_ppo_grpo/ppo",
    max_steps=batches,
    num_ppo_epochs=1,  # optimizer steps per batch of completions, as for the others
    kl_coef=beta,
    cliprange=0.2,
    lam=1.0,
    reward_weights=reward_weights,
    logging_steps=max(1, batches // 6),
    **rollouts,
)
policy_model = get_peft_model(load_model("runs/11_ppo_grpo/start"), peft_config)
trainer = ppo.PPOTrainer(policy_model, ppo_args, [exact, valid], train_dataset, tokenizer)
started = time.perf_counter()
trainer.train()
seconds["PPO"], logs["PPO"] = time.perf_counter() - started, trainer.state.log_history
replies["PPO"] = answers(policy_model, held_out["prompt"])

# %% id="train"
grouped = rollouts | {"num_generations": num_generations, "beta": beta}


def train(trainer):
    """Train; return the log and the seconds."""
    started = time.perf_counter()
    trainer.train()
    return trainer.state.log_history, time.perf_counter() - started


# %% id="rloo-train"
rloo_args = RLOOConfig(
    output_dir="runs/11_ppo_grpo/rloo",
    max_steps=batches,
    reward_weights=reward_weights,
    logging_steps=max(1, batches // 6),
    **grouped,
)
rloo = RLOOTrainer(
    load_model("runs/11_ppo_grpo/start"),
    [exact, valid],
    rloo_args,
    train_dataset,
    processing_class=tokenizer,
    peft_config=peft_config,
)
logs["RLOO"], seconds["RLOO"] = train(rloo)
replies["RLOO"] = answers(rloo.model, held_out["prompt"])

# %% id="grpo-train"
grpo_args = GRPOConfig(
    output_dir="runs/11_ppo_grpo/grpo",
    max_steps=batches,
    reward_weights=reward_weights,
    loss_type="grpo",
    logging_steps=max(1, batches // 6),
    **grouped,
)
grpo = GRPOTrainer(
    load_model("runs/11_ppo_grpo/start"),
    [exact, valid],
    grpo_args,
    train_dataset,
    processing_class=tokenizer,
    peft_config=peft_config,
)
logs["GRPO"], seconds["GRPO"] = train(grpo)
replies["GRPO"] = answers(grpo.model, held_out["prompt"])
grpo.save_model("runs/11_ppo_grpo/adapter")

# %% [markdown] id="curves-why"
# ## What to watch
# The reward that you want (`exact`), and what it costs: the distance from the start (KL), the length, the entropy (how
# much the model still tries out). When many groups have equal rewards, most of a batch teaches nothing. The loss comes last.

# %% [markdown] id="curves-why" lang="zh" of="34d59444"
# ## 看什么
# 先看真正想要的奖励（`exact`），再看它的代价：离起点的距离（KL）、长度、熵（模型还在多大程度上尝试）。如果很多组里奖励全都相等，一批数据里的大部分就没什么可学的。损失放在最后看。


# %% id="curves"
pictures = {
    "Do exact answers rise?\nshare of completions": ("rewards/exact/mean",),
    "How far from the start?\nKL, nats per token": ("kl",),
    "Do answers grow?\ntokens per completion": ("length", "completions/mean_length"),
    "Does it still explore?\nentropy, nats": ("entropy",),
    "Which groups teach nothing?\nshare with equal rewards": ("frac_reward_zero_std",),
    "Does the loss show it?\nloss": ("loss",),
}
colours = {"PPO": "#0072b2", "RLOO": "#e69f00", "GRPO": "#4c956c"}


def curve(log, names):
    """Return the numbers of a log under the first of some names that it has, in the rows that score completions."""
    return [row[name] for row in log if "reward" in row for name in names if name in row]


fig, axes = plt.subplots(2, 3, figsize=(8, 4.4), layout="constrained")
for ax, (title, names) in zip(axes.flat, pictures.items(), strict=True):
    for method, log in logs.items():
        points = curve(log, names)
        seen = [(k + 1) * batches * batch_size / len(points) for k in range(len(points))]
        ax.plot(seen, points, ".-", label=method, color=colours[method])
    ax.set_title(title, fontsize=9)
axes[0, 0].set_ylim(0, 1.02)
axes[1, 1].set_ylim(-0.02, 1.02)
fig.supxlabel("completions so far", fontsize=9)
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
plt.show()

# %% [markdown] id="after-why"
# Training batches hold other messages every time, so these curves are noisy. The held-out messages are the measure:

# %% [markdown] id="after-why" lang="zh" of="314f645f"
# 每个训练批次的消息都不同，所以曲线有噪声。衡量标准是留出的消息：

# %% id="after"
shares = {label: exact_share(texts) for label, texts in replies.items()}
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
plots.plot_scores(shares, len(held_out), ax)
ax.set(title=f"How many of {len(held_out)} held-out messages get the exact answer?", ylabel="exact, %")
plt.show()
late_kl = {method: sum(curve(log, ("kl",))[-3:]) / min(3, batches) for method, log in logs.items()}
print(f"{'':<6}{'exact':>7}{'95% interval':>15}{'vs SFT':>8}{'completions':>13}{'steps':>7}{'seconds':>9}{'KL':>7}")
for method in logs:
    low, high = evaluate.interval(shares[method], len(held_out))
    row = f"{shares[method]:>7.0%}{f'{low:.0%} to {high:.0%}':>15}{100 * (shares[method] - start_share):>+8.0f}"
    row += f"{batches * batch_size:>13}{batches:>7}{seconds[method]:>9.0f}{late_kl[method]:>7.2f}"
    print(f"{method:<6}{row}")
_, start_high = evaluate.interval(start_share, len(held_out))
risen = [m for m in logs if evaluate.interval(shares[m], len(held_out))[0] > start_high]
print("vs SFT: points above the model after SFT; KL: mean of the last three values, nats per token")
print("interval above that of the model after SFT:", ", ".join(risen) or "none of them")

# %% [markdown] id="samples-why"
# Read them, also the wrong ones:

# %% [markdown] id="samples-why" lang="zh" of="e50a3402"
# 读一读，错的也读：

# %% id="samples"
before, after = replies["after\nSFT"], replies["GRPO"]
kinds = {"wrong -> right": (0, 1), "wrong -> wrong": (0, 0), "right -> wrong": (1, 0)}
right_before, right_after = (
    [text == a for text, a in zip(x, held_out["answer"], strict=True)] for x in (before, after)
)
for kind, (was, now) in kinds.items():
    picked = [k for k in range(len(held_out)) if (right_before[k], right_after[k]) == (was, now)]
    print(f"{kind}: {len(picked)} of {len(held_out)}")
    for k in picked[:2]:
        print(
            f"  {held_out[k]['prompt'][0]['content'].splitlines()[1]}\n    before: {before[k]}\n    after:  {after[k]}"
        )
if shares["GRPO"] > shares["after\nSFT"]:
    print("\nThe rewards never showed the model a right answer, only a score for each completion.")

# %% [markdown] id="when"
# Here the right times are known, so SFT on clean demonstrations, as in lesson 03, would have been the plain choice. A
# reward is for tasks in which a result can be *checked* but nobody wrote it down: code with tests, a proof, a game.

# %% [markdown] id="when" lang="zh" of="37b3cd75"
# 这里的正确时间是已知的，所以像第 03 课那样在干净的示范上做 SFT 才是直接的办法。奖励适用于结果可以*检查*、却没有人写下答案的任务：带测试的代码、证明、游戏。

# %% [markdown] id="experiment-why"
# ## Experiment
# The eight completions from above once more. What is each of them worth with other reward weights, another `beta`,
# without dividing by the standard deviation? The KL penalty is subtracted from the reward here, as RLOO and PPO do:
# the middle picture shows how much likelier the model that GRPO trained writes each completion than the start does.
# Try: `valid` alone; both weights 0; `beta` = 1.

# %% [markdown] id="experiment-why" lang="zh" of="9e11d7db"
# ## 动手试一试
# 还是上面那八个回答。换一组奖励权重、换一个 `beta`、不除以标准差，每个回答各值多少？这里像 RLOO 和 PPO 那样，把 KL 的代价从奖励里扣除：中间的图是 GRPO 训练后的模型写出每个回答的对数概率比起点高多少。试试：只留 `valid`；两个权重都设为 0；`beta` = 1。

# %% id="experiment"
rows = slice(chosen * num_generations, (chosen + 1) * num_generations)
shown = {name: part[rows] for name, part in start_batch.items()}
with torch.no_grad():
    moved = token_log_probabilities(grpo.model, shown)
    with grpo.model.disable_adapter():
        moved -= token_log_probabilities(grpo.model, shown)
log_ratio = (moved * shown["completion_mask"]).sum(1).cpu()  # nats per completion


def draw(exact_weight, valid_weight, beta, divide_by_std):
    rewards = exact_weight * group_scores[0] + valid_weight * group_scores[1]
    advantages = rewards - beta * log_ratio - (rewards - beta * log_ratio).mean()
    if divide_by_std:
        advantages = advantages / (advantages.std() + 1e-4)
    fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.6), layout="constrained")
    titles = ("How good?\nweighted reward", "How much likelier now?\nlog ratio, nats", "Up or down?\nadvantage")
    for ax, title, bars in zip(axes, titles, (rewards, log_ratio, advantages), strict=True):
        ax.bar(range(1, len(bars) + 1), bars, color="#4c956c")
        ax.set_xticks(range(1, len(bars) + 1))
        ax.axhline(0, color="#555", linewidth=0.8)
        ax.set_title(title, fontsize=9)
    fig.supxlabel("completion", fontsize=9)
    plt.show()


for number, text in enumerate(group_texts, start=1):
    print(f"{number}: {text}", end="   ")
experiment.show(
    draw, exact_weight=(0.0, 2.0, 0.25), valid_weight=(0.0, 2.0, 0.25), beta=(0.0, 1.0, 0.02), divide_by_std=True
)

# %% [markdown] id="break-why"
# ## What goes wrong: reward hacking
# The model that GRPO trained goes on training. Tokens cost money, so the reward is now for *valid and short*: a time
# or `null`, the fewer tokens the better. It does not check whether this is what the customer said. `exact` is logged
# with weight 0: it has no effect on training, and its curve shows what the new reward costs. **Predict before you
# run:** how many held-out answers will still be exact?

# %% [markdown] id="break-why" lang="zh" of="024f170c"
# ## 故意出错：奖励作弊（reward hacking）
# GRPO 训练好的模型继续训练。token 要花钱，于是这次有人按*有效且短*给分：只要是时间或 `null` 就给分，token 越少分越高，却忘了检查是不是顾客说的时间。`exact` 以权重 0 一起记录：不给分，但它的曲线会显示这个奖励的代价。**先预测，再运行：** 留出消息的回答里，还有多少完全正确？

# %% id="predict-hack"
guess_hacked = 20  # your guess: exact answers afterwards, in percent


# %% id="break-train"
def valid_and_short(completions, completion_ids, **columns):
    saved = [1 - len(ids) / max_completion_length for ids in completion_ids]
    return [form * share for form, share in zip(valid(completions), saved, strict=True)]


hack_args = GRPOConfig(
    output_dir="runs/11_ppo_grpo/hack",
    max_steps=side_batches,
    reward_weights=[1.0, 0.0],
    loss_type="grpo",
    logging_steps=max(1, side_batches // 4),
    **grouped,
)
set_seed(seed)
hacked = GRPOTrainer(
    grpo.model.merge_and_unload(),
    [valid_and_short, exact],
    hack_args,
    train_dataset,
    processing_class=tokenizer,
    peft_config=peft_config,
)
hack_log, _ = train(hacked)
replies["hacked"] = answers(hacked.model, held_out["prompt"])

# %% id="answer-hack"
hacked_right = exact_share(replies["hacked"])
paid, right = (curve(hack_log, (f"rewards/{name}/mean",)) for name in ("valid_and_short", "exact"))
fig, ax = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
seen = [(k + 1) * side_batches * batch_size / len(paid) for k in range(len(paid))]
ax.plot(seen, paid, ".-", color="#0072b2", label="valid_and_short, weight 1")
ax.plot(seen, right, ".--", color="#d55e00", label="exact, weight 0")
ax.set(xlabel="completions so far", ylabel="mean reward", ylim=(-0.03, 1.03), title="Does the reward of weight 0 fall?")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
ax.grid(alpha=0.3)
plt.show()
print(f"mean of valid_and_short: {paid[0]:.2f} -> {paid[-1]:.2f}")
print(f"exact on held-out messages: {shares['GRPO']:.0%} -> {hacked_right:.0%}")
print(f"you predicted {guess_hacked}%, measured {hacked_right:.0%}")
for row, text in zip(held_out.select(range(4)), replies["hacked"], strict=False):
    print(f"\n{row['prompt'][0]['content'].splitlines()[1]}\n  {text}")

# %% [markdown] id="break-fix"
# The reward that is trained on doesn't show the damage; only a metric that is not trained on does. So log the metric
# you care about beside the reward, and read samples of every run. The fix is in the reward: give nothing for half of
# the task (multiply by `exact`, or leave the length out).
#
# `null` takes fewer tokens than any time, so one `null` among the eight completions of a message is enough to be
# pushed up. **If exact answers did not fall in your run**, none was sampled in so few batches: raise `side_batches`,
# and look again.

# %% [markdown] id="break-fix" lang="zh" of="4509528b"
# 用来训练的奖励不会显示出损害，只有没有参与训练的指标会。所以：把真正关心的指标与奖励一起记录，而且每次训练都读样本。要改的是奖励：只完成一半不给分（乘上 `exact`，或者干脆不看长度）。
#
# `null` 比任何时间都少用 token，所以一条消息的八个回答里只要采到一个 `null`，它就会被推高。**如果你的这次运行里正确回答没有减少**，说明这么少的批次里没有采到：把 `side_batches` 调大，再看一次。

# %% [markdown] id="judge-why"
# ## A judge instead of a program
# Most requirements cannot be checked by a program. Then a reward model takes its place: feedback from a model instead
# of a person is called RLAIF. The judge of lesson 10 learned which answers its raters chose; TRL takes a model
# wherever it takes a function. The task is another one: short questions about facts, many of which the untrained
# model can answer. `is_right` and `says_in_short` are logged with weight 0.

# %% [markdown] id="judge-why" lang="zh" of="695ccc0f"
# ## 用裁判代替程序
# 大多数要求没法用程序检查，这时由奖励模型代替；用模型而不是人来给反馈，叫做 RLAIF。第 10 课的裁判学会了它的评分者会选哪个回答；凡是 TRL 接受函数的地方，也接受模型。任务换成另一个：关于事实的短问题，其中许多未训练的模型就能答对。`is_right` 和 `says_in_short` 以权重 0 一起记录。


# %% id="judge-data"
def to_prompt(row):
    return {"prompt": [{"role": "user", "content": row["instruction"]}], "answer": row["output"]}


def to_pair(row):
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["instruction"]}]} | sides


facts = load_dataset("json", data_files={"train": "data/facts_en.jsonl", "eval": "data/facts_en_eval.jsonl"})
facts = facts.map(to_prompt, remove_columns=facts["train"].column_names)
questions = facts["eval"].select(range(min(40, asked)))
pairs = load_dataset("json", data_files="data/preference_en.jsonl", split="train")
pairs = pairs.map(to_pair, remove_columns=pairs.column_names)


def is_right(completions, answer, **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [float(re.search(rf"\b{re.escape(a)}\b", t, re.I) is not None) for t, a in zip(texts, answer, strict=True)]


def says_in_short(completions, **columns):
    return [float(completion[0]["content"].startswith("In short")) for completion in completions]


# %% id="judge"
judge_folder = "runs/10_reward_model/adapter"
set_seed(seed)
judge = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype=dtype, device_map=where)
judge.config.pad_token_id = tokenizer.pad_token_id
if os.path.isdir(judge_folder) and PeftConfig.from_pretrained(judge_folder).base_model_name_or_path == str(model_path):
    print("the judge is lesson 10's")
    judge = PeftModel.from_pretrained(judge, judge_folder)
else:
    print("lesson 10 has not run here: a judge is trained as it does")
    judge = get_peft_model(judge, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS"))
    judge_args = RewardConfig(
        output_dir="runs/11_ppo_grpo/judge",
        max_steps=side_batches,
        per_device_train_batch_size=8,  # pairs
        learning_rate=5e-4,
        max_length=256,
        logging_steps=max(1, side_batches // 3),
        **shared,
    )
    RewardTrainer(judge, judge_args, train_dataset=pairs, processing_class=tokenizer).train()
judge = judge.merge_and_unload().eval()  # GRPOTrainer wants a plain model

# %% id="judge-train"
judged_args = GRPOConfig(
    output_dir="runs/11_ppo_grpo/judged",
    max_steps=max(1, side_batches // 2),
    reward_weights=[1.0, 0.0, 0.0],
    loss_type="grpo",
    logging_steps=1,
    **grouped | {"max_completion_length": 4 * max_completion_length},  # a sentence
)
base = load_model(model_path)
judged_before = answers(base, questions["prompt"], 4 * max_completion_length)
judged = GRPOTrainer(
    base,
    [judge, is_right, says_in_short],
    judged_args,
    facts["train"],
    processing_class=tokenizer,
    peft_config=peft_config,
)
judged_log, _ = train(judged)
judged_after = answers(judged.model, questions["prompt"], 4 * max_completion_length)

# %% id="judge-cost"
said = [[[{"content": text}] for text in texts] for texts in (judged_before, judged_after)]
facts_before, facts_after = (sum(is_right(texts, questions["answer"])) / len(questions) for texts in said)
judge_curve = curve(judged_log, ("reward",))
style = curve(judged_log, ("rewards/says_in_short/mean",))
print(f"the judge's reward while training: {judge_curve[0]:.2f} -> {judge_curve[-1]:.2f}")
print(f"completions that open with 'In short': {style[0]:.0%} -> {style[-1]:.0%}")
for label, share in (("before", facts_before), ("after", facts_after)):
    low, high = evaluate.interval(share, len(questions))
    print(f"right answers {label}: {share:.0%} of {len(questions)} (95% interval {low:.0%} to {high:.0%})")
if max(style) < 0.05:
    print("The judge's raters liked 'In short', but the model never writes it: there is nothing to strengthen.")
for k in range(min(3, len(questions))):
    print(f"\n{questions[k]['prompt'][0]['content']}\n  before: {judged_before[k]}\n  after:  {judged_after[k]}")

# %% [markdown] id="judge-read"
# Compare the judge's reward with the answers that you read. If it rises while no completion opens with "In short", it
# rewards another difference between the answers of its pairs, such as length. It was never trained to judge whether
# an answer is *true*, so only the KL penalty keeps right answers right. The order is therefore: a judge that is good
# on held-out pairs, calibrated and probed for length (lesson 10); a model that already writes what the judge likes
# now and then; a KL penalty; right answers logged beside the reward; and reading.

# %% [markdown] id="judge-read" lang="zh" of="95cb1c27"
# 把裁判的奖励与你读到的回答对照一下。如果奖励升高，却没有一个回答以 “In short” 开头，那它就是在按偏好对里的别的差别给分，例如长度。它从来没有学过判断回答*对不对*，所以能保住正确率的只有 KL 惩罚。因此次序是：先有一个在留出的偏好对上判得准、校准过、查过长度偏好的裁判（第 10 课）；模型要偶尔已经写得出裁判喜欢的东西；加上 KL 惩罚；把正确率与奖励一起记录；还要读样本。

# %% [markdown] id="exercise-advantage-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 11`
# checks your saved copy of the whole lesson.
#
# **1.** Three completions of one prompt got rewards 1, 0 and 0.5. What is the RLOO advantage of the first: its reward
# minus the mean of the others'?

# %% [markdown] id="exercise-advantage-why" lang="zh" of="5a336c62"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 11` 检查你保存的整课练习。
#
# **1.** 同一个提示的三条回答得到奖励 1、0 和 0.5。第一条的 RLOO 优势（它的奖励减去其余回答的平均奖励）是多少？

# %% id="exercise-advantage" tags=["exercise"]
advantage = ...  # your answer

checks.check_rloo_advantage(advantage)

# %% [markdown] id="exercise-advantage-solution"
# <details><summary>Solution</summary>
#
# ```python
# advantage = 1 - (0 + 0.5) / 2
# ```
#
# </details>

# %% [markdown] id="exercise-advantage-solution" lang="zh" of="7c01337d"
# <details><summary>参考答案</summary>
#
# ```python
# advantage = 1 - (0 + 0.5) / 2
# ```
#
# </details>

# %% [markdown] id="exercise-clip-why"
# **2.** Return True if a token still gets a gradient from the clipped loss (`epsilon = 0.2`), given its ratio and its
# advantage, and False otherwise.

# %% [markdown] id="exercise-clip-why" lang="zh" of="3a647d16"
# **2.** 给定一个 token 的比率和优势，如果裁剪后的损失（`epsilon = 0.2`）对它仍有梯度，返回 True，否则返回 False。

# %% id="exercise-clip" tags=["exercise"]


def pulls(ratio, advantage):
    return ...  # your code


checks.check_clipped_pull(pulls)

# %% [markdown] id="exercise-clip-solution"
# <details><summary>Solution</summary>
#
# ```python
# def pulls(ratio, advantage):
#     if advantage == 0:
#         return False
#     return ratio < 1.2 if advantage > 0 else ratio > 0.8
# ```
#
# </details>

# %% [markdown] id="exercise-clip-solution" lang="zh" of="6f27b404"
# <details><summary>参考答案</summary>
#
# ```python
# def pulls(ratio, advantage):
#     if advantage == 0:
#         return False
#     return ratio < 1.2 if advantage > 0 else ratio > 0.8
# ```
#
# </details>

# %% [markdown] id="exercise-group-why"
# **3.** Write GRPO's advantages: `rewards` has shape (prompts, completions). Each reward minus the mean of its prompt,
# divided by the standard deviation of its prompt (`torch`'s default) plus 1e-4.

# %% [markdown] id="exercise-group-why" lang="zh" of="6993bb3d"
# **3.** 写出 GRPO 的优势：`rewards` 形状为（提示数, 回答数）。每个奖励减去同一提示下的平均值，再除以同一提示下的标准差（`torch` 默认的定义）加 1e-4。

# %% id="exercise-group" tags=["exercise"]


def grpo_advantages(rewards):
    return ...  # your code


checks.check_grpo_advantages(grpo_advantages)

# %% [markdown] id="exercise-group-solution"
# <details><summary>Solution</summary>
#
# ```python
# def grpo_advantages(rewards):
#     mean = rewards.mean(dim=1, keepdim=True)
#     return (rewards - mean) / (rewards.std(dim=1, keepdim=True) + 1e-4)
# ```
#
# </details>

# %% [markdown] id="exercise-group-solution" lang="zh" of="de8a66a0"
# <details><summary>参考答案</summary>
#
# ```python
# def grpo_advantages(rewards):
#     mean = rewards.mean(dim=1, keepdim=True)
#     return (rewards - mean) / (rewards.std(dim=1, keepdim=True) + 1e-4)
# ```
#
# </details>

# %% [markdown] id="exercise-kl-why"
# **4.** Write the estimate of the KL divergence that GRPO uses, per token: with `d` the reference's log-probability
# minus the policy's, it is exp(d) - d - 1. Both arguments are tensors of log-probabilities.

# %% [markdown] id="exercise-kl-why" lang="zh" of="5121f3fd"
# **4.** 写出 GRPO 使用的逐 token 的 KL 散度估计：`d` 为参考模型的对数概率减去策略的对数概率，估计值为 exp(d) - d - 1。两个参数都是对数概率的张量。

# %% id="exercise-kl" tags=["exercise"]


def kl_estimate(policy_logps, reference_logps):
    return ...  # your code


checks.check_kl_estimate(kl_estimate)

# %% [markdown] id="exercise-kl-solution"
# <details><summary>Solution</summary>
#
# ```python
# def kl_estimate(policy_logps, reference_logps):
#     difference = reference_logps - policy_logps
#     return difference.exp() - difference - 1
# ```
#
# </details>

# %% [markdown] id="exercise-kl-solution" lang="zh" of="e242a531"
# <details><summary>参考答案</summary>
#
# ```python
# def kl_estimate(policy_logps, reference_logps):
#     difference = reference_logps - policy_logps
#     return difference.exp() - difference - 1
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
outcomes = {
    "pass_at_1": pass_at_1,
    "pass_at_8": pass_at_8,
    "exact_prompted": exact_share(prompted),
    "exact_before": start_share,
    "exact_ppo": shares["PPO"],
    "exact_rloo": shares["RLOO"],
    "exact_grpo": shares["GRPO"],
    "grpo_gain": shares["GRPO"] - start_share,
    "largest_kl": max(late_kl.values()),
    "own_loop_gain": own_curve[-1][0] - own_curve[0][0],
    "hacked_paid": paid[-1] - paid[0],
    "hacked_right": hacked_right,
    "judged_right": facts_after,
    "grpo_loss_max_abs_diff": grpo_loss_max_abs_diff,
    "ppo_seconds": seconds["PPO"],
    "grpo_seconds": seconds["GRPO"],
}
bands = {"largest_kl": (-0.1, 1.0), "grpo_loss_max_abs_diff": (0.0, 1e-5)}
if PROFILE != "smoke":
    bands |= {
        "exact_before": (0.2, 0.85),
        "grpo_gain": (0.15, 1.0),
    }
course.record(outcomes, bands)

# %% [markdown] id="next"
# **You keep** `runs/11_ppo_grpo/adapter`, which answers with pick-up times on top of `runs/11_ppo_grpo/start`.
#
# **On your GPU:** `PROFILE = "t4"` or `"a24g"` set a bigger model and their own learning rate; they have not been
# measured yet. A bigger model may need no SFT at all: look at pass@1 and pass@8 first.
#
# **The same from the command line:** `ftlab train recipes/ppo.yaml`, `recipes/rloo.yaml` and `recipes/grpo.yaml`;
# `reward_model:` takes the judge of lesson 10 in place of a function. Next: [12 · DPO](12_dpo.ipynb), which needs
# neither a reward nor completions written during training.

# %% [markdown] id="next" lang="zh" of="86e00c0e"
# **你得到的文件：** `runs/11_ppo_grpo/adapter`，配合 `runs/11_ppo_grpo/start` 使用，回答取货时间。
#
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"` 会换成更大的模型和各自的学习率，目前还没有人测过。更大的模型也许根本不需要 SFT：先看 pass@1 和 pass@8。
#
# **同样的事从命令行做：** `ftlab train recipes/ppo.yaml`、`recipes/rloo.yaml` 和 `recipes/grpo.yaml`；`reward_model:` 可以用第 10 课的裁判代替函数。下一课：[12 · DPO](12_dpo.ipynb)，它既不需要奖励，也不需要边训练边生成。
