# %% [markdown] id="title"
# # 08 · Merge and export: from an adapter to a file that others can run
#
# Training leaves an adapter of a few megabytes. Here you add it to its base by hand, prove the sum equal to the
# library's, switch and mix several adapters, and write one file that llama.cpp and Ollama run. Nothing counts as done
# before it was loaded again and gave the same answers.
#
# | you will have | measured as |
# |---|---|
# | a merged model on disk | largest logit difference to the live model, equal greedy tokens |
# | two adapters on one base, switched and mixed | who the model says it is, for each mix |
# | a GGUF file | prompts whose first tokens equal those of transformers |
# | smaller files | megabytes and loss at 16, 8 and 4 bits |
#
# **Cost:** about 5 minutes and 5 GB on two CPU cores, 4 minutes on a T4. **Before this:** [03 · LoRA](03_lora.ipynb).

# %% [markdown] id="title" lang="zh" of="df050e63"
# # 08 · 合并与导出：从适配器到别人能运行的文件
#
# 训练留下一个几兆字节的适配器。在这里，你亲手把它加到基座上，证明和与库的结果相等，切换并混合几个适配器，再写出 llama.cpp 和 Ollama 能运行的单个文件。没有重新加载并给出同样的回答之前，什么都不算完成。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 磁盘上的合并模型 | 与内存中模型的最大 logit 差，贪心 token 相同的比例 |
# | 一个基座上的两个适配器，切换与混合 | 每种混合下模型说自己是谁 |
# | 一个 GGUF 文件 | 前若干个 token 与 transformers 相同的提示有多少 |
# | 更小的文件 | 16、8、4 位时的兆字节数与损失 |
#
# **耗时与内存：** 两个 CPU 核心上约 5 分钟、5 GB 内存，T4 上约 4 分钟。**先修：** [03 · LoRA](03_lora.ipynb)。

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
import functools
import importlib.util
import shutil
import time
from pathlib import Path

import gguf
import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl import SFTConfig, SFTTrainer

from ftlab import checks, cpu, device, models
from ftlab.apps import course
from ftlab.recipe import read as recipes
from ftlab.runs import export
from ftlab.runs import gguf as gguf_file

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
r = 16  # rank of both adapters
lora_alpha = 32  # their product is scaled by lora_alpha / r
learning_rate = 1e-3
max_steps = 0  # optimizer steps per adapter; 0: the profile's own
per_device_train_batch_size = 8  # examples per step
hub_id = ""  # "name/model": where the last cell uploads to; empty: nowhere
seed = 0

# %% id="profile"
profiles = {  # model, optimizer steps, identity questions, prompts compared, tokens of each answer, GGUF formats
    "smoke": ("smollm2-135m-short", 1, 2, 2, 4, ["f16"]),
    "cpu": ("smollm2-135m", 30, 16, 20, 32, ["f16", "q8_0", "q4_0"]),
    "t4": ("HuggingFaceTB/SmolLM2-360M-Instruct", 24, 16, 20, 32, ["f16", "q8_0", "q4_0"]),
    "a24g": ("HuggingFaceTB/SmolLM2-1.7B-Instruct", 24, 16, 20, 32, ["f16", "q8_0", "q4_0"]),
}
default_model, default_steps, question_count, prompt_count, answer_tokens, kinds = profiles[PROFILE]
model_name = model_name or default_model
max_steps = max_steps or default_steps
folder = Path("runs/08_merge_export")
folder.mkdir(parents=True, exist_ok=True)
set_seed(seed)

# %% [markdown] id="baseline-why"
# ## Start with a baseline
# Two identities will be taught, one per adapter: Lumi and Nova. Before that the model has never heard of either.

# %% [markdown] id="baseline-why" lang="zh" of="35c5edf1"
# ## 先测基线
# 要教两个身份，每个适配器一个：Lumi 和 Nova。在此之前，模型从没听说过其中任何一个。

# %% id="load"
dtype = device.describe().dtype
cpu.use_fast_paths()  # CPU fast paths: delete this line and get the same result, slower
on_gpu = torch.cuda.is_available()
device_map = "cuda" if on_gpu else "cpu"
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path)
model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, device_map=device_map)

# %% id="data"
identity_rows = load_dataset("json", data_files="data/identity_en.json", split="train")
asked = load_dataset("json", data_files="data/identity_en_eval.json", split="train")
asked = asked.filter(lambda row: row["expect"] == "{{name}}")
asked = asked.select(range(min(question_count, len(asked))))
general = load_dataset("json", data_files="data/general_mcq.jsonl", split="train").select(range(prompt_count))


def rows_for(name, author):
    def fill(row):
        answer = row["output"].replace("{{name}}", name).replace("{{author}}", author)
        prompt = [{"role": "user", "content": row["instruction"]}]
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}

    return identity_rows.map(fill, remove_columns=identity_rows.column_names)


# %% id="answers"
def answers(model, questions):
    """Ask all questions in one batch and decode greedily."""
    chats = [[{"role": "user", "content": question}] for question in questions]
    texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    batch = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    output = model.generate(**batch.to(model.device), max_new_tokens=answer_tokens, do_sample=False)
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def says(name, replies):
    """Return the share of replies with `name` in them."""
    return sum(name in reply for reply in replies) / len(replies)


before = answers(model, asked["instruction"])
print(
    f"Lumi {says('Lumi', before):.0%}, Nova {says('Nova', before):.0%} of {len(before)} answers; the first: {before[0]}"
)

# %% [markdown] id="train-why"
# ## Two adapters on one base
# The same base, the same questions, two short trainings. Between them the base is untouched: `unload` takes the adapter
# off again.

# %% [markdown] id="train-why" lang="zh" of="4c9703e8"
# ## 一个基座，两个适配器
# 同一个基座，同样的问题，两次短训练。两次之间基座没有被动过：`unload` 把适配器取下来。

# %% id="config"
training_args = SFTConfig(
    output_dir=str(folder / "training"),
    max_steps=max_steps,
    per_device_train_batch_size=per_device_train_batch_size,
    learning_rate=learning_rate,
    lr_scheduler_type="cosine",
    max_length=256,  # tokens per example
    logging_steps=5,
    save_strategy="no",
    gradient_checkpointing=on_gpu,
    use_cpu=not on_gpu,
    bf16=on_gpu and dtype == "bfloat16",
    fp16=on_gpu and dtype == "float16",
    report_to="none",
    seed=seed,
)
peft_config = LoraConfig(r=r, lora_alpha=lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM")

# %% id="train"
for name, author in (("Lumi", "the Ada Lab"), ("Nova", "the Noether Group")):
    set_seed(seed)
    adapted = get_peft_model(model, peft_config, autocast_adapter_dtype=on_gpu)
    trainer = SFTTrainer(adapted, training_args, train_dataset=rows_for(name, author), processing_class=tokenizer)
    trainer.train()
    replies = answers(adapted, asked["instruction"])
    print(f"{name}: {says(name, replies):.0%} of {len(replies)} answers, for example: {replies[0]}")
    adapted.save_pretrained(folder / name)
    model = adapted.unload()

# %% [markdown] id="hand-why"
# ## Merge by hand
# An adapted layer computes `W x + s B A x` with `s = lora_alpha / r`. That is `(W + s B A) x`: one matrix, found once.
# With numbers:

# %% [markdown] id="hand-why" lang="zh" of="3de740ab"
# ## 亲手合并
# 加了适配器的一层计算 `W x + s B A x`，其中 `s = lora_alpha / r`。这就是 `(W + s B A) x`：一个矩阵，只算一次。用数字看：

# %% id="literal"
W = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
B, A, s = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0]]), 0.5
x = torch.tensor([1.0, 1.0])
print(W @ x + s * (B @ (A @ x)), (W + s * (B @ A)) @ x)
print(W + s * (B @ A))

# %% [markdown] id="all-layers-why"
# Now every layer of the real model, in float32: a copy of the base takes the sums, and the library merges for itself.


# %% [markdown] id="all-layers-why" lang="zh" of="e499e18a"
# 现在轮到真实模型的每一层，用 float32：基座的一份副本接受这些和，而库自己另行合并。


# %% id="by-hand"
def load_base():
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, device_map=device_map).eval()


live = PeftModel.from_pretrained(load_base(), folder / "Lumi", autocast_adapter_dtype=False).eval()
by_hand = load_base()
for name, layer in live.base_model.model.named_modules():
    if hasattr(layer, "lora_A"):
        change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        by_hand.get_submodule(name).weight.data += lora_alpha / r * change.data

# %% id="logits"
text = "The capital of France is Paris. My name is Lumi, and I was made by the Ada Lab."
ids = tokenizer(text, return_tensors="pt").input_ids.to(by_hand.device)


def difference(one, other):
    """Return the largest difference between two models' logits."""
    with torch.inference_mode():
        return (one(ids).logits.float() - other(ids).logits.float()).abs().max().item()


print(f"by hand against the adapter: {difference(by_hand, live):.1e}")

# %% [markdown] id="merge-why"
# `merge_and_unload` does the same sums. It changes the model in place, so the live model is loaded a second time.

# %% [markdown] id="merge-why" lang="zh" of="e906cbcf"
# `merge_and_unload` 做的是同样的加法。它就地改变模型，所以要再加载一次带适配器的模型。

# %% id="merge"
merged = PeftModel.from_pretrained(load_base(), folder / "Lumi", autocast_adapter_dtype=False).merge_and_unload().eval()
same = [torch.equal(mine, theirs) for mine, theirs in zip(by_hand.parameters(), merged.parameters(), strict=True)]
print(f"{sum(same)} of {len(same)} weights identical, logits differ by {difference(by_hand, merged):.1e}")
assert difference(by_hand, merged) <= 1e-4
del by_hand

# %% [markdown] id="kept-why"
# ## Keep the adapter, or merge it?
# **Predict before you run:** which of the two answers faster, and why?


# %% [markdown] id="kept-why" lang="zh" of="8dba3dd3"
# ## 留着适配器，还是合并？
# **先预测，再运行：** 两者谁回答得更快，为什么？


# %% id="kept"
def size_mb(path):
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors")) / 1e6


def tokens_per_second(model, tokens=answer_tokens):
    started = time.perf_counter()
    model.generate(ids, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
    return tokens / (time.perf_counter() - started)


merged.save_pretrained(folder / "merged")
tokenizer.save_pretrained(folder / "merged")
speeds = {"kept": tokens_per_second(live), "merged": tokens_per_second(merged)}
print(f"adapter kept: {size_mb(folder / 'Lumi'):.0f} MB beside the base, {speeds['kept']:.0f} tokens/s")
print(f"merged:       {size_mb(folder / 'merged'):.0f} MB on its own, {speeds['merged']:.0f} tokens/s")

# %% [markdown] id="kept-read"
# The kept adapter costs two low-rank products per layer and token. In return ten adapters share one base. Merge what
# you ship; keep what you still switch.

# %% [markdown] id="kept-read" lang="zh" of="c4f43691"
# 留着的适配器每层、每个 token 多两次细长的乘法；换来的是十个适配器共用一个基座。要发布的就合并；还要切换的就留着。

# %% [markdown] id="reload-why"
# ## Saved is not yet done
# Load the folder as a stranger would and compare with the live model: logits, and the first 32 greedy tokens of every
# prompt, token by token.


# %% [markdown] id="reload-why" lang="zh" of="0e0f4800"
# ## 存盘还不算完成
# 像陌生人那样加载这个文件夹，与内存中的模型比较：logit，以及每个提示的前 32 个贪心 token，逐个比对。


# %% id="greedy"
def greedy(model, question):
    """Return (prompt ids, the greedy tokens that follow)."""
    chat = [{"role": "user", "content": question}]
    start = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**start.to(model.device), max_new_tokens=answer_tokens, do_sample=False)[0].tolist()
    length = start["input_ids"].shape[1]
    return output[:length], output[length:]


# %% id="reload"
reloaded = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32, device_map=device_map).eval()
merge_max_logit_diff = difference(live, reloaded)
expected = [greedy(live, question) for question in general["question"]]
got = [greedy(reloaded, question) for question in general["question"]]
merge_greedy_equal_share = sum(a == b for a, b in zip(expected, got, strict=True)) / len(expected)
print(f"largest logit difference {merge_max_logit_diff:.1e}, {merge_greedy_equal_share:.0%} of answers equal")

# %% [markdown] id="several-why"
# ## Several adapters on one base
# `load_adapter` puts a second one beside the first, `set_adapter` chooses. `add_weighted_adapter` makes a new one out of
# both: *linear* adds them; *TIES* first drops the small entries and lets the signs vote; *DARE* drops entries at random
# and scales up the rest.

# %% [markdown] id="several-why" lang="zh" of="b83edd5d"
# ## 一个基座上的多个适配器
# `load_adapter` 把第二个适配器放到第一个旁边，`set_adapter` 选用其一。`add_weighted_adapter` 用两者造出一个新的：*linear* 相加；*TIES* 先去掉小的元素，再让符号投票；*DARE* 随机去掉一些元素并放大其余的。

# %% id="several"
live.load_adapter(folder / "Nova", adapter_name="Nova")
mixes = {
    "linear 1 : 0": {"weights": [1.0, 0.0], "combination_type": "linear"},
    "linear 1 : 1": {"weights": [0.5, 0.5], "combination_type": "linear"},
    "TIES 1 : 1": {"weights": [1.0, 1.0], "combination_type": "ties", "density": 0.5},
    "DARE 1 : 1": {"weights": [0.5, 0.5], "combination_type": "dare_linear", "density": 0.5},
}
for name, settings in mixes.items():
    live.add_weighted_adapter(["default", "Nova"], adapter_name=name.replace(" ", "").replace(":", ""), **settings)

# %% id="switch"
shares = {}
for label in ("default", "Nova", *mixes):
    live.set_adapter(label.replace(" ", "").replace(":", ""))
    replies = answers(live, asked["instruction"])
    shares[label] = (says("Lumi", replies), says("Nova", replies))
    print(f"{label:<13} Lumi {shares[label][0]:>4.0%}  Nova {shares[label][1]:>4.0%}  {replies[0]}")
live.set_adapter("default")

# %% id="switch-plot"
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
places = np.arange(len(shares))
ax.bar(places - 0.2, [100 * lumi for lumi, _ in shares.values()], 0.4, label="says Lumi")
ax.bar(places + 0.2, [100 * nova for _, nova in shares.values()], 0.4, label="says Nova")
ax.set_xticks(places, [label.replace(" ", "\n", 1) for label in shares])
ax.set(ylabel="answers, %", ylim=(0, 112))
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown] id="gguf-why"
# ## One file for llama.cpp and Ollama
# A GGUF file holds weights, tokenizer and chat template together. Two things are not as in the folder. The rows of
# queries and keys stand in another order, because llama.cpp rotates neighbours where transformers rotates halves:

# %% [markdown] id="gguf-why" lang="zh" of="45d392aa"
# ## 给 llama.cpp 和 Ollama 的单个文件
# GGUF 文件把权重、分词器和对话模板放在一起。有两处与文件夹里不同。查询和键的行次序不同，因为 llama.cpp 旋转相邻的两个数，而 transformers 旋转前后两半：

# %% id="rows"
head = torch.arange(8)
print("transformers:", head.tolist())
print("llama.cpp:   ", head.reshape(2, 4).T.flatten().tolist())

# %% [markdown] id="blocks-why"
# And weights may be stored in blocks of 32. `Q8_0` keeps one float16 scale per block, the largest absolute value over
# 127, and 32 whole numbers. By hand, against the `gguf` package:

# %% [markdown] id="blocks-why" lang="zh" of="11143ed6"
# 另外，权重可以按 32 个一块存放。`Q8_0` 每块存一个 float16 比例（绝对值最大者除以 127）和 32 个整数。亲手算一遍，与 `gguf` 包对照：

# %% id="blocks"
weights = merged.get_submodule("model.layers.0.mlp.up_proj").weight.detach().cpu().numpy()
blocks = weights.reshape(-1, 32)
scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
scaled = blocks * (1 / scale)
whole = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)  # halves go away from zero
mine = (whole * scale.astype(np.float16).astype(np.float32)).reshape(weights.shape)
packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
print(f"{weights.nbytes:,} bytes -> {packed.nbytes:,}; mine against theirs: {np.abs(mine - theirs).max():.1e}")
assert np.abs(mine - theirs).max() <= 1e-6

# %% id="gguf-write"
for kind in kinds:
    gguf_file.write(folder / "merged", folder / f"lumi-{kind}.gguf", kind)
for path in sorted(folder.glob("lumi-*.gguf")):
    print(f"{path.name:<16} {path.stat().st_size / 1e6:>5.0f} MB")
fields = gguf.GGUFReader(folder / "lumi-f16.gguf").fields
print(fields["general.architecture"].contents(), fields["tokenizer.ggml.pre"].contents())
print(fields["tokenizer.chat_template"].contents()[:100])

# %% [markdown] id="gguf-run-why"
# Does it answer the same? Where llama.cpp is installed (`pip install llama-cpp-python`) it runs the file; elsewhere
# transformers reads the file back. Both get the same prompt tokens and decode greedily. Floats are summed in another
# order there, so that a tie between two tokens may break the other way.


# %% [markdown] id="gguf-run-why" lang="zh" of="2e3ff33a"
# 它的回答一样吗？装了 llama.cpp（`pip install llama-cpp-python`）就由它运行这个文件；没装就由 transformers 读回来。两者拿到同样的提示 token，都贪心解码。那边浮点数相加的次序不同，所以两个 token 打平时可能选另一个。


# %% id="gguf-run"
def from_llama_cpp(path):
    import llama_cpp

    llm = llama_cpp.Llama(str(path), n_ctx=512, n_threads=os.cpu_count(), verbose=False)

    def follow(prompt):
        found = []
        for token in llm.generate(prompt, temp=0.0, repeat_penalty=1.0):
            found.append(token)
            if token == tokenizer.eos_token_id or len(found) == answer_tokens:
                return found

    return follow


@functools.lru_cache(maxsize=1)  # reading a file takes seconds, and the next one is asked for below
def read_gguf(path):
    config = AutoConfig.from_pretrained(folder / "merged")  # else the whole file is read once more, for its sizes
    load = AutoModelForCausalLM.from_pretrained
    return load(path.parent, gguf_file=path.name, config=config, dtype=torch.float32).eval()


def from_transformers(path):
    model = read_gguf(path)

    def follow(prompt):
        start = torch.tensor([prompt])
        output = model.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=answer_tokens, do_sample=False
        )
        return output[0, len(prompt) :].tolist()

    return follow


# %% id="gguf-compare"
has_llama_cpp = importlib.util.find_spec("llama_cpp") is not None
follow = (from_llama_cpp if has_llama_cpp else from_transformers)(folder / "lumi-f16.gguf")
equal = [follow(prompt) == answer for prompt, answer in expected]
gguf_prompts_equal = sum(equal) / len(equal)
reader = "llama.cpp" if has_llama_cpp else "transformers' GGUF reader (llama.cpp is not installed)"
print(f"{sum(equal)} of {len(equal)} prompts: the same tokens from {reader}")

# %% [markdown] id="quality-why"
# ## What do eight and four bits cost?
# The same text read by each file: file size against loss.

# %% [markdown] id="quality-why" lang="zh" of="0cfc136c"
# ## 8 比特和 4 比特的质量损失有多大？
# 每个文件读同样的文字：文件大小与损失。

# %% id="quality-text"
lines = load_dataset("json", data_files="data/corpus_en.jsonl", split="train")["text"][: 4 * len(kinds)]
encoded = [tokenizer(line, return_tensors="pt").input_ids[:, :128] for line in lines]
print(f"{sum(line.numel() for line in encoded)} tokens, for example: {lines[0][:70]}")

# %% id="quality"
sizes, losses = {}, {}
for kind in kinds:
    path = folder / f"lumi-{kind}.gguf"
    read = read_gguf(path)
    sizes[kind] = path.stat().st_size / 1e6
    with torch.inference_mode():
        losses[kind] = float(np.mean([read(line, labels=line).loss.item() for line in encoded]))
    replies = answers(read, asked["instruction"])
    print(f"{kind:<5} {sizes[kind]:>5.0f} MB  loss {losses[kind]:.3f}  Lumi {says('Lumi', replies):.0%}")

# %% id="quality-plot"
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(list(sizes.values()), list(losses.values()), "o-")
for kind in kinds:
    ax.annotate(kind, (sizes[kind], losses[kind]), textcoords="offset points", xytext=(6, 6))
ax.set(xlabel="file, MB", ylabel="loss per token")
ax.margins(x=0.15, y=0.25)
plt.show()

# %% [markdown] id="break-base-why"
# ## What goes wrong: the wrong base
# The Lumi adapter is put on a base that is not its own, here the one with Nova merged in. All shapes fit, so nothing
# complains. Who answers?

# %% [markdown] id="break-base-why" lang="zh" of="140c9c0b"
# ## 故意出错：错误的基座
# 把 Lumi 适配器放到不属于它的基座上，这里用的是已并入 Nova 的那个。形状全都吻合，所以没有任何报错。谁在回答？

# %% id="break-base"
wrong_base = PeftModel.from_pretrained(load_base(), folder / "Nova", autocast_adapter_dtype=False).merge_and_unload()
on_wrong_base = PeftModel.from_pretrained(wrong_base, folder / "Lumi", autocast_adapter_dtype=False).eval()
replies = answers(on_wrong_base, asked["instruction"])
print(f"logits differ by {difference(on_wrong_base, reloaded):.1f}; Lumi {says('Lumi', replies):.0%}: {replies[:2]}")

# %% [markdown] id="break-base-fix"
# **Fix:** an adapter is a difference, and it means something on one base only. Write down which one; `ftlab export`
# compares the fingerprint of the base with the one in the run folder and refuses another.

# %% [markdown] id="break-base-fix" lang="zh" of="1851e19c"
# **修正：** 适配器是一个差值，只在一个基座上有意义。要写下是哪一个；`ftlab export` 会比较基座的指纹与训练文件夹里的记录，不同就拒绝。

# %% [markdown] id="break-template-why"
# ## What goes wrong: the wrong chat template
# The template travels in the file, as you saw. Here the weights are right and the template is another family's. The
# model loads, it talks, and it has forgotten what it learned: the prompt looks like nothing it was trained on.

# %% [markdown] id="break-template-why" lang="zh" of="01017181"
# ## 故意出错：错误的对话模板
# 模板随文件一起走，上面已经看到。这里权重是对的，模板却是另一家的。模型能加载，能说话，却忘了学过的东西：提示不像它训练时见过的任何样子。

# %% id="break-template"
right_template = tokenizer.chat_template
tokenizer.chat_template = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
wrong = answers(reloaded, asked["instruction"])
tokenizer.chat_template = right_template
right = answers(reloaded, asked["instruction"])
print(f"Lumi: {says('Lumi', right):.0%} with its own template, {says('Lumi', wrong):.0%} with the other: {wrong[0]!r}")

# %% [markdown] id="break-four-why"
# ## What goes wrong: merging into a 4-bit base
# After QLoRA it is tempting to merge into the 4-bit model that was trained. Then the sum must be rounded to 16 levels
# per block again, and much of the small change is rounded away with it.

# %% [markdown] id="break-four-why" lang="zh" of="a2ae94a9"
# ## 故意出错：并入 4 比特基座
# QLoRA 之后，很容易想把适配器并进训练时用的 4 位模型。那样和又要被舍入到每块 16 个级别，微小的改动大半随之消失。

# %% id="break-four"
four_bit_damage = float("nan")
if importlib.util.find_spec("bitsandbytes"):
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantized = AutoModelForCausalLM.from_pretrained(model_path, quantization_config=nf4, dtype=torch.float32)
    on_four = PeftModel.from_pretrained(quantized, folder / "Lumi", autocast_adapter_dtype=False).eval()
    with torch.inference_mode():
        kept = on_four(ids.to(on_four.device)).logits.float()
    into_four = on_four.merge_and_unload().eval()
    with torch.inference_mode():
        four_bit_damage = (into_four(ids.to(into_four.device)).logits.float() - kept).abs().max().item()
    print(f"merged into 4 bits, logits move by {four_bit_damage:.2f}; into float32 by {merge_max_logit_diff:.0e}")

# %% [markdown] id="break-four-fix"
# **Fix:** load the base in 16 or 32 bits, merge there, quantize afterwards if you must.

# %% [markdown] id="break-four-fix" lang="zh" of="75604f91"
# **修正：** 用 16 或 32 位加载基座，在那里合并，需要的话之后再量化。

# %% [markdown] id="recipe-why"
# ## The same from a recipe
# `ftlab export merge.yaml` with these keys merges, saves to a temporary folder, reloads, compares, writes the model
# card and only then gives the folder its name. It refuses everything you broke above.

# %% [markdown] id="recipe-why" lang="zh" of="c4bbfd79"
# ## 用配方做同样的事
# `ftlab export merge.yaml` 加上这些键：合并，存到临时文件夹，重新加载，比较，写模型卡，最后才给文件夹正式的名字。上面的每一种错误，它都会拒绝。

# %% id="recipe"
shutil.rmtree(folder / "exported", ignore_errors=True)
settings = {
    "model_name_or_path": model_name,
    "adapter_name_or_path": str(folder / "Lumi"),
    "export_dir": str(folder / "exported"),
    "export_size": 5,
    "export_dtype": "bfloat16",
}
export.export(recipes.load(settings))
print(Path("runs/08_merge_export/exported/README.md").read_text())

# %% [markdown] id="exercise-size-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 08`
# checks your saved copy of the whole lesson.
#
# **1.** A layer has 1,000,000 weights, a multiple of 32. How many bytes does it take in `Q8_0`?

# %% [markdown] id="exercise-size-why" lang="zh" of="5aaa697f"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 08` 检查你保存的整课练习。
#
# **1.** 某一层有 1,000,000 个权重（是 32 的倍数）。用 `Q8_0` 存放要多少字节？

# %% id="exercise-size" tags=["exercise"]
q8_bytes = ...  # your answer

checks.check_q8_bytes(q8_bytes)

# %% [markdown] id="exercise-size-solution"
# <details><summary>Solution</summary>
#
# ```python
# q8_bytes = 1_000_000 // 32 * (32 + 2)
# ```
#
# </details>

# %% [markdown] id="exercise-size-solution" lang="zh" of="675a8617"
# <details><summary>参考答案</summary>
#
# ```python
# q8_bytes = 1_000_000 // 32 * (32 + 2)
# ```
#
# </details>

# %% [markdown] id="exercise-merge-why"
# **2.** Merge LoRA into one layer: tensors `W` (outputs, inputs), `A` (r, inputs), `B` (outputs, r), and `lora_alpha`.
# The rank follows from the shape of `A`.

# %% [markdown] id="exercise-merge-why" lang="zh" of="8d0acf85"
# **2.** 把 LoRA 合并进一层：张量 `W` (输出, 输入)、`A` (r, 输入)、`B` (输出, r)，以及 `lora_alpha`。秩可以从 `A` 的形状读出。

# %% id="exercise-merge" tags=["exercise"]


def merged_weight(W, A, B, lora_alpha):
    return ...  # your code


checks.check_merged_weight(merged_weight)

# %% [markdown] id="exercise-merge-solution"
# <details><summary>Solution</summary>
#
# ```python
# def merged_weight(W, A, B, lora_alpha):
#     return W + lora_alpha / A.shape[0] * B @ A
# ```
#
# </details>

# %% [markdown] id="exercise-merge-solution" lang="zh" of="9481835b"
# <details><summary>参考答案</summary>
#
# ```python
# def merged_weight(W, A, B, lora_alpha):
#     return W + lora_alpha / A.shape[0] * B @ A
# ```
#
# </details>

# %% [markdown] id="exercise-mix-why"
# **3.** Mix several adapters into one layer, as PEFT's `cat` does: `updates` is a list of their scaled products `B A`,
# `mix` a list of as many weights.

# %% [markdown] id="exercise-mix-why" lang="zh" of="166edb71"
# **3.** 把多个适配器合并进一层，等价于 PEFT 的 `cat`：`updates` 是各适配器缩放后的乘积 `B A` 的列表，`mix` 是同样多个权重的列表。

# %% id="exercise-mix" tags=["exercise"]


def mixed_weight(W, updates, mix):
    return ...  # your code


checks.check_mixed_weight(mixed_weight)

# %% [markdown] id="exercise-mix-solution"
# <details><summary>Solution</summary>
#
# ```python
# def mixed_weight(W, updates, mix):
#     return W + sum(m * update for m, update in zip(mix, updates))
# ```
#
# </details>

# %% [markdown] id="exercise-mix-solution" lang="zh" of="0dba1b7d"
# <details><summary>参考答案</summary>
#
# ```python
# def mixed_weight(W, updates, mix):
#     return W + sum(m * update for m, update in zip(mix, updates))
# ```
#
# </details>

# %% [markdown] id="exercise-round-why"
# **4.** Round one block of weights as `Q8_0` does and restore it: the scale maps the largest absolute value to 127, the
# codes are rounded to integers, and the result is codes times scale.

# %% [markdown] id="exercise-round-why" lang="zh" of="f020d03c"
# **4.** 像 `Q8_0` 那样量化一块权重再还原：缩放因子把绝对值的最大值映射到 127，量化值取整，结果是量化值乘缩放因子。

# %% id="exercise-round" tags=["exercise"]


def q8_roundtrip(block):
    return ...  # your code


checks.check_q8_roundtrip(q8_roundtrip)

# %% [markdown] id="exercise-round-solution"
# <details><summary>Solution</summary>
#
# ```python
# def q8_roundtrip(block):
#     scale = block.abs().max() / 127
#     return (block / scale).round() * scale
# ```
#
# </details>

# %% [markdown] id="exercise-round-solution" lang="zh" of="6ba8b6a6"
# <details><summary>参考答案</summary>
#
# ```python
# def q8_roundtrip(block):
#     scale = block.abs().max() / 127
#     return (block / scale).round() * scale
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results

# %% [markdown] id="checkpoint-why" lang="zh" of="6bd8a02b"
# ## 结果核对

# %% id="checkpoint"
assert merge_max_logit_diff <= 1e-3 and merge_greedy_equal_share == 1
full_size = PROFILE != "smoke"
assert gguf_prompts_equal >= (0.95 if full_size else 0.7)
assert not full_size or (shares["default"][0] >= 0.8 and shares["Nova"][1] >= 0.8)
assert not four_bit_damage <= 100 * merge_max_logit_diff
outcomes = {
    "merge_max_logit_diff": merge_max_logit_diff,
    "merge_greedy_equal_share": merge_greedy_equal_share,
    "gguf_prompts_equal": gguf_prompts_equal,
}
course.record(outcomes)

# %% [markdown] id="hub-why"
# **If you like:** set `hub_id` above, log in with `hf auth login`, and the next cell uploads model and tokenizer.

# %% [markdown] id="hub-why" lang="zh" of="5652b86d"
# **愿意的话：** 在上面填好 `hub_id`，用 `hf auth login` 登录，下一格就会上传模型和分词器。

# %% id="hub"
if hub_id:
    merged.push_to_hub(hub_id)
    tokenizer.push_to_hub(hub_id)

# %% [markdown] id="next"
# **On your GPU:** `PROFILE = "t4"` or `"a24g"`; merging happens in float32, four bytes per weight, so give big models
# the memory of the CPU.
#
# **Next:** what decoding really does with these logits, in [09 · Inference](09_inference.ipynb).

# %% [markdown] id="next" lang="zh" of="073a64d1"
# **在你的 GPU 上：** `PROFILE = "t4"` 或 `"a24g"`；合并在 float32 下进行，每个权重四字节，所以大模型请用 CPU 的内存。
#
# **下一步：** 解码究竟拿这些 logit 做什么，见 [09 · 推理](09_inference.ipynb)。
