# %% [markdown] id="title"
# # 11 · PPO and GRPO: learning from a reward
#
# Until now somebody had to write the right answer down. Here nobody does: the model writes, a program says how good that
# was, and the model does more of what was good. You write the reward and GRPO's loss, see how PPO gets by without groups,
# train the same model three ways, see what that costs in right answers, and catch a model that cheats.
#
# | you will have | measured as |
# |---|---|
# | a reward that a program computes | its mean on held-out questions |
# | the GRPO loss by hand | largest difference to TRL's, same batch |
# | PPO, GRPO and RLOO on one task | reward, right answers and words before and after; KL, entropy |
# | a model that hacks its reward, and the cure | right answers, by reading |
#
# **Cost:** about 12 minutes and 7 GB on two CPU cores, 6 minutes on a T4. **Before this:**
# [10 · A reward model](10_reward_model.ipynb) or [12 · DPO](12_dpo.ipynb).

# %% [markdown] id="title" lang="zh" of="deb780b5"
# # 11 · PPO 与 GRPO：从奖励中学习
#
# 到目前为止，总得有人写下正确答案。在这里没有人写：模型来写，程序说写得有多好，模型就多做好的那些。你写出奖励和 GRPO 的损失，看 PPO 怎样不靠分组也行，用三种方法训练同一个模型，看看它们在正确率上付出了什么代价，再抓住一个作弊的模型。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 一个由程序计算的奖励 | 它在留出问题上的平均值 |
# | 手写的 GRPO 损失 | 同一批数据上与 TRL 的最大差值 |
# | 同一任务上的 PPO、GRPO 和 RLOO | 训练前后的奖励、正确率、词数；KL、熵 |
# | 一个钻奖励空子的模型，以及治法 | 正确回答的比例，靠阅读发现 |
#
# **耗时与内存：** 两个 CPU 核心上约 12 分钟、7 GB 内存，T4 上约 6 分钟。**先修：** [10 · 奖励模型](10_reward_model.ipynb) 或 [12 · DPO](12_dpo.ipynb)。

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
import inspect
import re
import time

import matplotlib.pyplot as plt
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer

from ftlab import checks, cpu, device, models
from ftlab.apps import course
from ftlab.runs import ppo

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
temperature = 0.8  # of the completions that are written while training
max_completion_length = 24  # tokens
num_generations = 8  # GRPO, RLOO: completions per question, compared with each other
beta = 0.02  # the price of one nat of distance from the reference
r = 16  # rank of the adapter
learning_rate = 5e-4  # GRPO's and RLOO's
ppo_learning_rate = 1.5e-3  # it sees each question once, so that its steps have to be bigger
seed = 0

# %% id="profile"
profiles = {  # model, batches of PPO, GRPO and each side run, completions per batch, held-out questions, tokens each
    "smoke": ("smollm2-135m", 1, 1, 1, 8, 4, 6),
    "cpu": ("smollm2-135m", 32, 48, 6, 16, 40, 40),
    "t4": ("Qwen/Qwen2.5-0.5B-Instruct", 20, 20, 12, 32, 40, 40),
    "a24g": ("Qwen/Qwen2.5-7B-Instruct", 20, 20, 12, 32, 40, 40),
}
default_model, ppo_batches, grpo_batches, side_batches, batch_size, question_count, answer_tokens = profiles[PROFILE]
model_name = model_name or default_model
max_completion_length = 8 if PROFILE == "smoke" else max_completion_length
set_seed(seed)

# %% [markdown] id="data-why"
# ## The task: right, and brief
# Questions whose answer is a word or two. The model knows these answers, but buries them in sentences. Nobody writes
# better ones: a row holds the question and what a right answer must contain. The held-out questions are others.
#
# Since the model knows these answers, the share of right ones can hardly rise; what can rise is brevity. Watch what the
# brevity costs.

# %% [markdown] id="data-why" lang="zh" of="ba1f6822"
# ## 任务：正确，而且简短
# 答案只有一两个词的问题。模型知道这些答案，却把它们埋在长句里。没有人去写更好的回答：一行数据只有问题，以及正确回答必须包含的内容。留出的问题是另外一些。
#
# 既然模型本来就知道答案，正确率几乎没有上升的余地；能提高的是简短程度。注意观察简短要付出什么代价。


# %% id="data"
def to_prompt(row):
    return {"prompt": [{"role": "user", "content": row["instruction"]}], "answer": row["output"]}


train_dataset = load_dataset("json", data_files="data/facts_en.jsonl", split="train")
train_dataset = train_dataset.map(to_prompt, remove_columns=train_dataset.column_names)
held_out = load_dataset("json", data_files="data/facts_en_eval.jsonl", split=f"train[:{question_count}]").map(to_prompt)
print(len(train_dataset), "questions to learn from, for example", train_dataset[0])

# %% [markdown] id="reward-why"
# ## The reward
# A reward function gets the completions and the rows' columns, and returns one number each. This one gives 1 for a right
# answer in up to three words, a tenth less per further word, and nothing for a wrong one. The parts are *multiplied*:
# neither pays without the other.


# %% [markdown] id="reward-why" lang="zh" of="0a8746ce"
# ## 奖励
# 奖励函数拿到回答和数据的各列，为每条回答返回一个数。这个函数给三个词以内的正确回答 1 分，每多一个词少十分之一，错误的不给分。两部分*相乘*：缺了一个，另一个也拿不到分。


# %% id="reward"
def is_right(text, answer):
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def brevity(text):
    return min(1.0, max(0.0, 1 - (len(text.split()) - 3) / 10))


def right_and_brief(completions, answer, **columns):
    texts = [completion[0]["content"] for completion in completions]
    return [is_right(text, want) * brevity(text) for text, want in zip(texts, answer, strict=True)]


for text in ("Oslo", "The capital of Norway is Oslo.", "Bergen"):
    print(right_and_brief([[{"role": "assistant", "content": text}]], ["Oslo"])[0], text)

# %% [markdown] id="baseline-why"
# ## Start with a baseline

# %% [markdown] id="baseline-why" lang="zh" of="cefc10df"
# ## 先测基线

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
where = "cuda" if on_gpu else "cpu"
attention = "sdpa" if on_gpu else "eager"  # on a CPU the plain products are faster while rows are short
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def load_model(dtype=dtype):
    set_seed(seed)
    return AutoModelForCausalLM.from_pretrained(
        model_path, dtype=dtype, attn_implementation=attention, device_map=where
    )


# %% id="answers"
def answers(model):
    """Answer the held-out questions greedily, in one batch."""
    texts = tokenizer.apply_chat_template(list(held_out["prompt"]), add_generation_prompt=True, tokenize=False)
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.eval().generate(
        **batch.to(model.device), max_new_tokens=answer_tokens, do_sample=False, use_cache=True
    )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def scores(texts):
    """Return (mean reward, share of right answers, mean words) of answers to the held-out questions."""
    rewards = right_and_brief([[{"role": "assistant", "content": text}] for text in texts], held_out["answer"])
    right = [is_right(text, want) for text, want in zip(texts, held_out["answer"], strict=True)]
    return sum(rewards) / len(rewards), sum(right) / len(right), sum(len(text.split()) for text in texts) / len(texts)


# %% id="before"
answers_before = answers(load_model())
ppo_reward_before = grpo_reward_before = scores(answers_before)[0]
print("reward {:.2f}, right {:.0%}, {:.0f} words".format(*scores(answers_before)))
print(answers_before[0])

# %% [markdown] id="idea-why"
# ## The idea: better than the others
# Ask the same question several times. A completion's *advantage* is its reward compared with its group's: make the tokens
# of the good ones likelier, those of the bad ones less likely. In a group that all got the same reward there is nothing
# to learn.
#
# The methods of this lesson form a ladder. All push up the log-probability of a completion's tokens by its advantage; they
# differ in what a completion is compared with, in whether the same completions may be used for several steps (ratio and
# clip), and in where the distance from the starting model (KL) is paid for:
#
# | | baseline | ratio and clip | KL |
# |---|---|---|---|
# | REINFORCE (1992) | none, or a running mean | no: one step per batch | not part of it |
# | RLOO (2019, 2024) | mean of the *other* completions of the prompt | TRL: on the whole completion | in the reward, per completion |
# | PPO (2017) | what a value head expects, token by token | per token | in the reward, per token |
# | GRPO (2024) | mean of the group, divided by its standard deviation | per token | in the loss, per token |
#
# GRPO's advantages of four completions to each of two questions:


# %% [markdown] id="idea-why" lang="zh" of="4242c2d1"
# ## 想法：比别人好
# 把同一个问题问几遍。一条回答的*优势*，是它的奖励与同组相比：让好的那些的 token 更可能，让坏的那些更不可能。如果一组里奖励都一样，就没有什么可学。
#
# 本课的几种方法是一架梯子。它们都按优势推高一条回答里各 token 的对数概率；区别在于：回答与什么相比（基线），同一批回答能不能用来更新好几步（比率与截断），以及离开起始模型的距离（KL）在哪里付费：
#
# | | 基线 | 比率与截断 | KL |
# |---|---|---|---|
# | REINFORCE（1992） | 没有，或一个滑动平均 | 没有：每批只更新一步 | 不包含 |
# | RLOO（2019、2024） | 同一提示*其他*回答的均值 | TRL：按整条回答 | 在奖励里，按回答 |
# | PPO（2017） | 价值头的逐 token 预期 | 逐 token | 在奖励里，逐 token |
# | GRPO（2024） | 组内均值，再除以标准差 | 逐 token | 在损失里，逐 token |
#
# 两个问题，各四条回答，GRPO 的优势是：


# %% id="group-advantages"
def group_advantages(rewards, num_generations):  # rewards: (questions * num_generations,)
    groups = rewards.view(-1, num_generations)
    spread = groups.std(1, keepdim=True)
    return ((groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)).view(-1)


print(group_advantages(torch.tensor([1.0, 0.7, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]), 4))

# %% [markdown] id="loss-why"
# ### Ten lines: GRPO's loss
# The *ratio* says how much likelier a token has become since it was written. It is *clipped*: beyond 20% there is nothing
# more to gain, so that one batch cannot pull the model away. And every token pays `beta` for its distance from the
# reference, the model without its adapter.
#
# With `num_iterations=1`, TRL's default and the setting of the runs below, each batch of completions is used for one
# optimizer step. Every ratio is 1 in that step, so **the clip never acts**; it matters from the second step on the same
# completions on, as in PPO with two epochs.


# %% [markdown] id="loss-why" lang="zh" of="2dd95b70"
# ### 十行代码：GRPO 的损失
# *比率*说的是一个 token 自写下以来变得可能了多少。它会被*截断*：超过 20% 就没有更多好处，所以一批数据拉不走模型。每个 token 还要为它与参考（去掉适配器的模型）的距离付出 `beta`。
#
# `num_iterations=1` 是 TRL 的默认值，下面的训练也用它：每批回答只更新一步，这一步里所有比率都是 1，所以**截断从不生效**。只有在同一批回答上更新第二步时它才起作用，例如跑两个 epoch 的 PPO。


# %% id="grpo-loss"
def grpo_loss(logps, old_logps, ref_logps, advantages, mask, epsilon, beta):  # logps, mask: (B, T), advantages: (B,)
    ratio = torch.exp(logps - old_logps)
    gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(1 - epsilon, 1 + epsilon) * advantages[:, None])
    kl = ratio * (torch.exp(ref_logps - logps) - (ref_logps - logps) - 1)  # times the ratio: its slope is the KL's own
    per_token = beta * kl - gain
    return ((per_token * mask).sum(1) / mask.sum(1)).mean()


# %% [markdown] id="zero-why"
# ### "My loss is 0. Is it broken?"
# Not with this loss. Right after writing, every ratio is 1 and a group's advantages add up to 0, so the mean over
# completions is 0 *whatever the rewards are*. What trains is its gradient.
#
# That holds for `loss_type="grpo"`, which takes the mean of each completion first. A side effect is *length bias*: each
# token of a short completion weighs more than each token of a long one, so a long wrong answer is punished less per token.
# TRL's default, `dapo`, takes the mean over all tokens of a batch; there the loss is not 0 when lengths differ. Under a
# reward for brevity this choice matters.
#
# **Predict before you run:** which of four one-token completions get a gradient?

# %% [markdown] id="zero-why" lang="zh" of="91379db1"
# ### “我的损失是 0，是不是坏了？”
# 用这个损失时没坏。刚写完时，每个比率都是 1，一组优势之和为 0，所以对各条回答取平均，*不管奖励是多少*，结果都是 0。起训练作用的是它的梯度。
#
# 这只对 `loss_type="grpo"` 成立：它先在每条回答内部取平均。副作用是*长度偏差*（length bias）：短回答里每个 token 的权重比长回答里的大，所以同样是错，长回答的每个 token 受的惩罚更轻。TRL 的默认值 `dapo` 对一批里的所有 token 取平均；长度不同时，损失就不是 0。奖励简短时，这个选择很要紧。
#
# **先预测，再运行：** 四条只有一个 token 的回答里，哪些得到梯度？

# %% id="zero"
logps = torch.tensor([[-1.0], [-2.0], [-0.5], [-3.0]], requires_grad=True)
advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4)
loss = grpo_loss(logps, logps.detach(), logps.detach(), advantages, torch.ones(4, 1), epsilon=0.2, beta=0.0)
loss.backward()
print(f"loss {loss.item():.6f}, gradient {logps.grad.squeeze(1).tolist()}")
assert abs(loss.item()) < 1e-6 and (logps.grad != 0).all()

# %% [markdown] id="parity-why"
# ### The same as TRL's
# One batch of completions written by TRL's trainer, in 32-bit numbers; then the adapter is moved at random, so that
# policy, old policy and reference all differ.


# %% [markdown] id="parity-why" lang="zh" of="e7d0ca5e"
# ### 与 TRL 的相同
# 由 TRL 的训练器写出一批回答，用 32 位浮点数；然后随机移动适配器，使策略、旧策略和参考都不相同。


# %% id="settings"
shared = {
    "per_device_train_batch_size": batch_size,  # completions
    "max_completion_length": max_completion_length,
    "temperature": temperature,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": on_gpu,
    "use_cpu": not on_gpu,
    "bf16": on_gpu and dtype == "bfloat16",
    "fp16": on_gpu and dtype == "float16",
    "report_to": "none",
    "seed": seed,
}
grpo_settings = shared | {
    "learning_rate": learning_rate,
    "lr_scheduler_type": "constant",
    "num_generations": num_generations,
    "beta": beta,
}


# %% id="token-logps"
def token_log_probabilities(model, batch):
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    written = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=seen).logits[:, -written - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None]).squeeze(-1)  # (B, T)


# %% id="parity"
small = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
short = {"max_completion_length": 8, "per_device_train_batch_size": 4, "num_generations": 4, "beta": 0.1}
args = GRPOConfig(output_dir="runs/11_ppo_grpo", loss_type="grpo", num_iterations=2, **grpo_settings | short)
exact = load_model(torch.float32)
trainer = GRPOTrainer(exact, right_and_brief, args, train_dataset, processing_class=tokenizer, peft_config=small)
exact, trainer.current_gradient_accumulation_steps = trainer.model.train(), 1
batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
batch["advantages"] = group_advantages(torch.tensor([1.0, 0.7, 0.0, 0.0]), 4).to(where)
with torch.no_grad():
    for name, weight in exact.named_parameters():
        if "lora_B" in name:
            weight += 0.05 * torch.randn_like(weight)
    theirs = trainer.compute_loss(exact, dict(batch)).item()
    policy = token_log_probabilities(exact, batch)
    with exact.disable_adapter():
        reference = token_log_probabilities(exact, batch)
mine = grpo_loss(
    policy, batch["old_per_token_logps"], reference, batch["advantages"], batch["completion_mask"], 0.2, 0.1
).item()
grpo_loss_max_abs_diff = abs(theirs - mine)
print(f"TRL {theirs:.6f}, by hand {mine:.6f}, difference {grpo_loss_max_abs_diff:.1e}")
assert grpo_loss_max_abs_diff <= 1e-5
del exact, trainer

# %% [markdown] id="ppo-why"
# ## PPO: a guess instead of a group
# PPO writes one completion per question of a batch. What it compares with is its own expectation: a *value head*, one
# number per token from the same forward pass. Head and policy share the adapter, so the head's loss moves the policy a
# little too. The *generalised advantage estimate* walks backwards and asks at every token: how much better did it turn
# out than expected? TRL has no PPO any more; `ftlab/runs/ppo.py` is one you can read. Its advantage:

# %% [markdown] id="ppo-why" lang="zh" of="538d1916"
# ## PPO：用猜测代替分组
# PPO 对一批里的每个问题只写一条回答。它拿来比较的是自己的预期：一个*价值头*，在同一次前向计算里为每个 token 给出一个数。价值头与策略共用适配器，所以价值头的损失也会稍微推动策略。*广义优势估计*从后往前走，在每个 token 上问：结果比预期好多少？TRL 已经没有 PPO；`ftlab/runs/ppo.py` 是一个你读得懂的实现。它的优势：

# %% id="gae"
print(inspect.getsource(ppo.gae))
rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.4, 0.3]])
for lam in (1.0, 0.5, 0.0):
    print(f"lam {lam}:", ppo.gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=lam)[0].tolist())

# %% [markdown] id="gae-read"
# Only the last token is rewarded. At `lam = 1` every token shares the unexpected reward at the end; at `lam = 0` each
# one only sees how the expectation changed at its own step. In PPO the KL price is part of the reward, token by token,
# and the ratio is clipped just as in your loss above.

# %% [markdown] id="gae-read" lang="zh" of="54ecca10"
# 只有最后一个 token 有奖励。`lam = 1` 时，每个 token 都分担最后意料之外的奖励；`lam = 0` 时，每个 token 只看到自己这一步预期的变化。在 PPO 里，KL 惩罚逐个 token 算进奖励，比率的截断与你上面的损失一样。

# %% id="adapter"
peft_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM")
logs, seconds, replies = {}, {}, {"before": answers_before}

# %% id="ppo-train"
policy_model = get_peft_model(load_model(), peft_config)
ppo_args = ppo.PPOConfig(
    output_dir="runs/11_ppo_grpo/ppo",
    max_steps=2 * ppo_batches,
    num_ppo_epochs=2,  # optimizer steps per batch of completions
    learning_rate=ppo_learning_rate,
    lr_scheduler_type="linear",
    kl_coef=beta,  # the price of KL, paid token by token
    cliprange=0.2,
    lam=0.9,
    **shared,
)
started = time.perf_counter()
trainer = ppo.PPOTrainer(policy_model, ppo_args, right_and_brief, train_dataset, tokenizer)
trainer.train()
seconds["PPO"], logs["PPO"] = time.perf_counter() - started, trainer.state.log_history
replies["PPO"] = answers(policy_model)

# %% [markdown] id="grpo-why"
# ## GRPO and RLOO, through TRL
# The same task, the same reward, no value head. RLOO compares each completion with the mean of the *others* in its group
# and does not divide by the spread; it subtracts the price of KL from the reward.
#
# **The budgets are not equal.** The profile cell says how many batches of completions each method gets; on `cpu` GRPO gets
# half as many again as PPO, which takes two optimizer steps per batch, and RLOO gets an eighth of GRPO's. Read RLOO as a
# first look, not as a comparison.
#
# On a CPU, the fast paths compute a prefix that the rows of a batch share once, here a
# question and its template: numerically equivalent, only faster. Completions are drawn from the same distribution, with
# other random numbers.


# %% [markdown] id="grpo-why" lang="zh" of="faf33f45"
# ## GRPO 与 RLOO，用 TRL
# 同样的任务，同样的奖励，没有价值头。RLOO 把每条回答与同组*其他*回答的平均值比较，也不除以离散程度；KL 的代价从奖励里扣除。
#
# **预算并不相等。** 每种方法有多少批回答，写在 profile 单元格里；`cpu` 规模下，GRPO 的批数是 PPO 的一倍半（PPO 每批更新两步），RLOO 只有 GRPO 的八分之一。RLOO 只是先看一眼，不能当作比较。
#
# 在 CPU 上，快速路径只计算一次同一批数据共有的前缀（这里是问题和它的模板）：数值上等价，只是更快。回答取自同一个分布，只是随机数不同。


# %% id="train"
def prepare(trainer_class, args, reward):
    """Return a trainer of TRL's with a fresh adapter."""
    return trainer_class(load_model(), reward, args, train_dataset, processing_class=tokenizer, peft_config=peft_config)


def train(trainer):
    """Train; return the log, the seconds, and the answers afterwards."""
    started = time.perf_counter()
    trainer.train()
    return trainer.state.log_history, time.perf_counter() - started, answers(trainer.model)


# %% id="grpo-train"
grpo_args = GRPOConfig(output_dir="runs/11_ppo_grpo/grpo", max_steps=grpo_batches, loss_type="grpo", **grpo_settings)
grpo = prepare(GRPOTrainer, grpo_args, right_and_brief)
logs["GRPO"], seconds["GRPO"], replies["GRPO"] = train(grpo)

# %% id="rloo-train"
rloo_args = RLOOConfig(output_dir="runs/11_ppo_grpo/rloo", max_steps=side_batches, **grpo_settings)
rloo = prepare(RLOOTrainer, rloo_args, right_and_brief)
logs["RLOO"], seconds["RLOO"], replies["RLOO"] = train(rloo)

# %% [markdown] id="curves-why"
# ## What to watch
# The reward, and what it costs: KL (how far from the reference), length, entropy (how much the model still tries out).
# When the share of groups with zero spread rises, most of a batch teaches nothing any more.


# %% [markdown] id="curves-why" lang="zh" of="ab5fd946"
# ## 看什么
# 奖励，以及它的代价：KL（离参考多远）、长度、熵（模型还在多大程度上尝试）。当零离散的组所占比例上升时，一批数据的大部分已经教不了什么。


# %% id="curves"
pictures = {
    "reward": ("reward",),
    "KL per token, nats": ("kl",),
    "tokens": ("length", "completions/mean_length"),
    "entropy, nats": ("entropy",),
    "groups with zero spread": ("frac_reward_zero_std",),
    "loss": ("loss",),
}


def curve(log, names):
    """Return the numbers of a log under the first of some names that it has, and those of written batches only."""
    return [row[name] for row in log if "reward" in row for name in names if name in row]


fig, axes = plt.subplots(2, 3, figsize=(7.5, 4), layout="constrained")
for ax, (title, names) in zip(axes.flat, pictures.items(), strict=True):
    for method, log in logs.items():
        ax.plot(curve(log, names), label=method)
    ax.set(title=title, xlabel="batch of completions")
axes[0, 0].legend()
plt.show()

# %% [markdown] id="curves-read"
# Read the loss last: it says next to nothing. The reward curve is noisy because every batch holds other questions; the
# held-out score below is the measure. Do look at KL: at several nats per token the model hardly resembles the one you
# started with, and a lower learning rate or a higher `beta` is due.

# %% [markdown] id="curves-read" lang="zh" of="12a82bcc"
# 损失最后看：它几乎什么也没说。奖励曲线有噪声，因为每批都是不同的问题；下面留出问题上的得分才是衡量标准。KL 一定要看：每个 token 偏离好几个 nat，模型就已经不太像起点了，该调低学习率或调高 `beta`。

# %% id="after"
print(f"{'':<8}{'reward':>8}{'right':>8}{'words':>8}{'seconds':>9}")
for method, texts in replies.items():
    print(f"{method:<8}{{:>8.2f}}{{:>8.0%}}{{:>8.1f}}{seconds.get(method, 0):>9.0f}".format(*scores(texts)))
for method, texts in replies.items():
    print(f"\n{method:<8}{texts[0]}\n{'':<8}{texts[1]}")
ppo_reward_after, grpo_reward_after = scores(replies["PPO"])[0], scores(replies["GRPO"])[0]
late = curve(logs["PPO"], ("kl",))[-3:]
ppo_kl = sum(late) / len(late)

# %% [markdown] id="after-read"
# The reward is what was paid for; the column *right* is what it cost or kept. With 40 questions, 36 right ones have a 95%
# interval of 77% to 96%, so differences of a few points between methods mean little; only a large fall is a finding. Nothing in the curves above shows it, because right answers were not logged on their own: pass
# a second reward function with weight 0 (`reward_weights=[1.0, 0.0]`), and TRL logs its mean without paying for it.

# %% [markdown] id="after-read" lang="zh" of="fd22be25"
# 奖励是付了分的东西；*right* 那一列是为此付出或保住的正确率。40 个问题答对 36 个，95% 置信区间是 77% 到 96%，所以方法之间差几个点说明不了什么，只有大幅下降才算发现。上面的曲线看不出这一点，因为正确率没有单独记录：再传一个权重为 0 的奖励函数（`reward_weights=[1.0, 0.0]`），TRL 就会记录它的平均值而不为它付分。

# %% [markdown] id="break-why"
# ## What goes wrong: a reward that can be hacked
# Somebody forgets one factor: brief answers are paid, right or not. **Predict before you run:** what will the curve
# look like, and what will the model say?


# %% [markdown] id="break-why" lang="zh" of="5b0e4912"
# ## 故意出错：一个有空子可钻的奖励
# 有人忘了一个因子：简短就给分，对不对都行。**先预测，再运行：** 曲线会是什么样子？模型会说什么？


# %% id="break-train"
def only_brief(completions, **columns):
    return [brevity(completion[0]["content"]) for completion in completions]


hack_args = GRPOConfig(
    output_dir="runs/11_ppo_grpo/hack", max_steps=2 * side_batches, loss_type="grpo", **grpo_settings
)
hacked = prepare(GRPOTrainer, hack_args, only_brief)
hack_log, _, replies["hacked"] = train(hacked)
hack_curve = curve(hack_log, ("reward",))
print(f"training reward {hack_curve[0]:.2f} -> {hack_curve[-1]:.2f}")

# %% [markdown] id="break-read"
# By its own reward this run is a success, and its reward curve cannot show otherwise: it never asked whether an answer is
# right. Reading does:

# %% [markdown] id="break-read" lang="zh" of="526207a9"
# 按它自己的奖励，这次训练很成功，它的奖励曲线也显示不出问题：它从来没有问过回答对不对。读一读就知道：

# %% id="break-samples"
for row, text in zip(held_out.select(range(4)), replies["hacked"], strict=False):
    print(f"{row['instruction']:<50} {text}")
hacked_reward, hacked_right, hacked_words = scores(replies["hacked"])
honest_right = scores(replies["GRPO"])[1]
print(f"right answers: {honest_right:.0%} with the whole reward, {hacked_right:.0%} with half of it")

# %% [markdown] id="break-mend"
# The fix is the reward you began with: multiply, so that nothing is paid for half of the task. And read samples of
# every run: a reward is the only thing a model is asked to do, and it is always an incomplete description of what you
# want.

# %% [markdown] id="break-mend" lang="zh" of="d2038658"
# 补救就是你最初的那个奖励：相乘，这样只完成一半就没有报酬。而且每次训练都要读样本：奖励是模型唯一被要求做的事，而它对你想要的总是不完整的描述。

# %% [markdown] id="judge-why"
# ## A judge instead of a program
# Most wishes no program can check. A reward model can stand in for it: the judge of lesson 10, trained here in a few
# steps on pairs in which people wanted "In short, ..." and a brief answer. TRL takes a model wherever it takes a function.
# **Predict before you run:** the program still scores the answers, but pays nothing for them; what happens to its score?

# %% [markdown] id="judge-why" lang="zh" of="788fd613"
# ## 用裁判代替程序
# 大多数愿望，程序检查不了。奖励模型可以代替它：第 10 课的裁判，在这里用几步训练好，所用的成对回答里，人们想要的是以 “In short, ...” 开头的简短回答。凡是 TRL 接受函数的地方，也接受模型。**先预测，再运行：** 程序仍然给回答打分，但不再付报酬；它的分数会怎样？


# %% id="judge-data"
def to_pair(row):
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["instruction"]}]} | sides


pairs = load_dataset("json", data_files="data/preference_en.jsonl", split="train")
pairs = pairs.map(to_pair, remove_columns=pairs.column_names)

# %% id="judge"
set_seed(seed)
judge = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype=dtype, device_map=where)
judge.config.pad_token_id = tokenizer.pad_token_id
judge = get_peft_model(judge, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS"))
unused = ("max_completion_length", "temperature")  # nothing is written here
judge_settings = {name: value for name, value in shared.items() if name not in unused}
judge_settings |= {"per_device_train_batch_size": batch_size // 2}  # pairs: two rows each
judge_args = RewardConfig(
    output_dir="runs/11_ppo_grpo/judge", max_steps=2 * side_batches, learning_rate=5e-4, **judge_settings
)
RewardTrainer(judge, judge_args, train_dataset=pairs, processing_class=tokenizer).train()
judge = judge.merge_and_unload().eval()  # GRPOTrainer wants a plain model

# %% id="judge-train"
judged_args = GRPOConfig(
    output_dir="runs/11_ppo_grpo/judged", max_steps=side_batches, loss_type="grpo", **grpo_settings
)
judged = prepare(GRPOTrainer, judged_args, judge)
judged_log, _, replies["judged"] = train(judged)
judged_curve = curve(judged_log, ("reward",))
print(f"the judge's reward {judged_curve[0]:.2f} -> {judged_curve[-1]:.2f}")
for row, text in zip(held_out.select(range(4)), replies["judged"], strict=False):
    print(f"{row['instruction']:<50} {text}")
for method in ("before", "judged"):
    print(f"{method:<8}the program's reward {{:.2f}}, right {{:.0%}}, {{:.0f}} words".format(*scores(replies[method])))

# %% [markdown] id="judge-read"
# Compare the judge's reward, the program's and the share of right answers with what you read. In so few steps and with so
# small a judge, do not expect much: where the judge's reward hardly moved, the model learned little from it, and right
# answers can fall all the same. The judge pays for what it saw in its few pairs, not for what they were meant
# to show: nobody asked it whether an answer is true, and whether it likes brief ones is for you to see. Its own curve
# says nothing about that. The order is therefore: first a judge that is good on held-out pairs and calibrated (lesson
# 10), with a probe for length, then training, with a price on KL, and reading.

# %% [markdown] id="judge-read" lang="zh" of="47cf8997"
# 把裁判的奖励、程序的奖励和正确率，与你读到的回答比一比。步数这么少，裁判又这么小，不要期望太多：如果裁判的奖励几乎没动，模型就没从它那里学到什么，而正确率照样可能下降。裁判付钱买的是它在那不多的偏好对里看到的东西，而不是那些偏好对本来想表达的东西：从来没有人问过它回答是不是真的，它是否喜欢简短的回答，要你自己去看。它自己的曲线对此什么也没说。所以次序是：先有一个在留出的偏好对上判得准、校准过、查过长度偏好的裁判（第 10 课），再训练，并配上 KL 惩罚，还要读样本。

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
# **2.** 给定一个 token 的比率和优势，如果截断后的损失（`epsilon = 0.2`）对它仍有梯度，返回 True，否则返回 False。

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
full_size = PROFILE != "smoke"
assert grpo_loss_max_abs_diff <= 1e-5
assert ppo_reward_after - ppo_reward_before >= 0.3 or not full_size
assert grpo_reward_after - grpo_reward_before >= 0.3 or not full_size
assert ppo_kl < 3
assert hack_curve[-1] > hack_curve[0] or not full_size
assert hacked_right < honest_right or not full_size
outcomes = {
    "ppo_reward_before": ppo_reward_before,
    "ppo_reward_after": ppo_reward_after,
    "grpo_reward_before": grpo_reward_before,
    "grpo_reward_after": grpo_reward_after,
    "rloo_reward_after": scores(replies["RLOO"])[0],
    "ppo_kl": ppo_kl,
    "grpo_loss_max_abs_diff": grpo_loss_max_abs_diff,
    "hacked_right": hacked_right,
    "ppo_seconds": seconds["PPO"],
    "grpo_seconds": seconds["GRPO"],
}
course.record(outcomes)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; bigger models want smaller steps, start at a tenth of both learning rates.
#
# **The same from the command line:** `ftlab train recipes/ppo.yaml` and `recipes/grpo.yaml`; `reward_model:` takes the
# judge of lesson 10 in place of a function. Next: [12 · DPO](12_dpo.ipynb), which needs neither reward nor rollouts.

# %% [markdown] id="next" lang="zh" of="5d622186"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；更大的模型需要更小的步子，两个学习率都从十分之一开始。
#
# **同样的事从命令行做：** `ftlab train recipes/ppo.yaml` 和 `recipes/grpo.yaml`；`reward_model:` 可以用第 10 课的裁判代替函数。下一课：[12 · DPO](12_dpo.ipynb)，它既不需要奖励，也不需要边训练边生成。
