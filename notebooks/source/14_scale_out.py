# %% [markdown] id="title"
# # 14 · Scale out: two processes, then eight GPUs
#
# One machine has two limits: training on all the data takes too long, or the model does not fit. Here you start two
# processes on this machine, average gradients by hand and prove that this is what DDP does; then you split the
# optimizer, the weights, the matrices and the layers, prove each equal to one process, and count what every process
# holds.
#
# | you will have | measured as |
# |---|---|
# | data parallelism by hand | difference to DDP and to one process with all rows |
# | ZeRO-1, FSDP2, tensor parallel, pipeline | loss and gradient against one process, in float32 |
# | one table of bytes | parameters, gradients, optimizer state per process: predicted and counted |
# | three silent failures | different starts; one process instead of two; a collective that one process skips |
# | a training script for any launcher | its adapter from two processes against one |
#
# Two processes on one CPU show that results are *equal* and what each process *holds*. They cannot show speed: both share
# the same cores and the same memory bus. No seconds are compared in this lesson.
#
# **Cost:** about 5 minutes and 11 GB on two CPU cores (with less memory: `PROFILE = "smoke"`, a tiny model). A T4 adds
# nothing: with one GPU there is nothing to split.
# **Before this:** [06 · Training](06_training.ipynb).

# %% [markdown] id="title" lang="zh" of="f46e4173"
# # 14 · 扩展：从两个进程到八张卡
#
# 单机会碰到两种瓶颈：数据太多跑不完，或者模型放不下。这一课在本机启动两个进程，先手写梯度平均，证明 DDP 做的就是这件事；再依次切分优化器状态、权重、矩阵和层，逐一证明结果与单进程相等，并数出每个进程实际占多少字节。
#
# | 你将得到 | 用什么衡量 |
# |---|---|
# | 手写的数据并行 | 与 DDP、与处理全部数据的单进程之间的差值 |
# | ZeRO-1、FSDP2、张量并行、流水线并行 | float32 下与单进程比较损失和梯度 |
# | 一张字节表 | 每个进程的参数、梯度、优化器状态：预测值与实测值 |
# | 三种不报错的故障 | 起点不同；本该两个进程却只起了一个；某个进程漏掉一次集合通信 |
# | 一个任何启动器都能用的训练脚本 | 两个进程与单进程得到的适配器之差 |
#
# 同一块 CPU 上的两个进程能说明结果*是否相等*、各自*占多少内存*，但说明不了速度：它们共用核心和内存带宽。所以这一课不比较耗时。
#
# **耗时与内存：** 两个 CPU 核心上约 5 分钟、11 GB 内存（内存不够时用 `PROFILE = "smoke"`，换成很小的模型）。T4 帮不上忙：只有一张卡就没有东西可切。**先修：** [06 · 训练](06_training.ipynb)。

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
import ast
import inspect
import json
import math
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import matplotlib.pyplot as plt
import psutil
import torch
from datasets import load_dataset
from safetensors.torch import load_file
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, set_seed

from ftlab import checks, memory, models, plots
from ftlab.apps import course
from ftlab.apps.board import experiment

# %% id="parameters" tags=["parameters"]
PROFILE = "cpu"  # smoke, cpu, t4 or a24g
model_name = ""  # empty: the profile's own
learning_rate = 1e-4
per_device_train_batch_size = 0  # examples per process and step; 0: the profile's own
seed = 0

# %% id="profile"
tiny = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "head_dim": 32}
tiny |= {"num_attention_heads": 3, "num_key_value_heads": 1}
profiles = {  # model, sizes that differ from its config.json, examples per process, optimizer steps
    "smoke": ("smollm2-135m", tiny, 1, 2),
    "cpu": ("smollm2-135m", {}, 2, 2),
    "t4": ("smollm2-135m", {}, 2, 2),
    "a24g": ("smollm2-135m", {}, 4, 3),
}
default_model, sizes, default_batch_size, steps = profiles[PROFILE]
model_name = model_name or default_model
per_device_train_batch_size = per_device_train_batch_size or default_batch_size
set_seed(seed)

# %% id="here"
fig, ax = plt.subplots(figsize=(7, 0.7), layout="constrained")
plots.plot_pipeline("SFT", ax)
plt.show()

# %% [markdown] id="data-why"
# ## The job
# Orders to JSON, as in lesson 03, all weights trained by AdamW in float32. Both processes read the job from a file: the
# model's folder, the learning rate, and for each step the rows of *all* processes. The loss of a step is the sum over
# the answers' tokens, divided by the number of those tokens in all processes.

# %% [markdown] id="data-why" lang="zh" of="46e3114b"
# ## 要做的训练
# 与第 03 课相同的“订单转 JSON”，用 AdamW 以 float32 训练全部权重。两个进程都从文件里读任务：模型文件夹、学习率，以及每一步*所有*进程的数据。一步的损失是回答 token 上的损失之和，除以所有进程的回答 token 总数。

# %% id="data"
folder = Path("runs/14_scale_out")
folder.mkdir(parents=True, exist_ok=True)
model_path = models.fetch(model_name)
tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="right")
if sizes:  # the smoke profile: random weights, the same architecture
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path, **sizes)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model_path = folder / "model"


def to_example(row):
    chat = [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


batch_size = 2 * per_device_train_batch_size  # of both processes
orders = load_dataset("json", data_files="data/orders_train.jsonl", split="train").select(range(steps * batch_size))
orders = orders.map(to_example, remove_columns=orders.column_names)
collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100, return_tensors="pt")
# Padded together, so that every step has the same shape: a pipeline needs that.
padded = collate([dict(row) for row in orders])
batches = [
    {name: padded[name][i : i + batch_size] for name in ("input_ids", "labels")}
    for i in range(0, len(orders), batch_size)
]
for batch in batches:
    batch["tokens"] = (batch["labels"][:, 1:] != -100).sum()  # in all processes together
job = {"model": str(model_path), "learning_rate": learning_rate, "batches": batches}
torch.save(job, folder / "job.pt")
print(f"{steps} steps of {batch_size} examples, {padded['input_ids'].shape[1]} tokens each")

# %% [markdown] id="steps-why"
# ## One process
# The reference: take the steps on all rows. The same function serves every split below, so it counts as it goes: the
# bytes that *this* process holds of parameters, gradients and AdamW's two moments (a `DTensor` is a tensor of which a
# process holds a part), and what the forward pass saves for the backward pass (activations).

# %% [markdown] id="steps-why" lang="zh" of="bd89b663"
# ## 单进程
# 先做参照：在全部数据上训练这几步。后面每种切分都用同一个函数，所以它边训练边计数：*本进程*持有的参数、梯度、AdamW 两个矩的字节数（`DTensor` 是每个进程只持有一部分的张量），以及前向计算为反向传播保存的内容（激活值）。


# %% id="steps"
def load_model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).train()


def adamw(weights):
    return torch.optim.AdamW(weights, lr=job["learning_rate"], foreach=False)  # tensors and DTensors side by side


def answer_loss_sum(logits, labels):
    """Sum the loss over the answers' tokens; the logits at one position are about the next token."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")


def take_steps(model, optimizer, rows=slice(None), copies=1, wrapped=None, average=None):
    """Train on `rows` of every batch; gradients are averaged over `copies` processes, by `average` or by a wrapper."""
    losses, gradients = [], {}
    for batch in job["batches"]:
        with saved_for_backward(model) as saved:
            logits = (wrapped or model)(input_ids=batch["input_ids"][rows]).logits
            loss = answer_loss_sum(logits, batch["labels"][rows]) / batch["tokens"]
        (copies * loss).backward()  # a mean over copies follows; this process has its share of the sum
        if average:
            average(model)
        gradients = gradients or {name: whole(weight.grad) for name, weight in watched(model).items()}
        optimizer.step()
        held = held_bytes_by_part(model, optimizer, saved)
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": torch.tensor(losses), "copies": copies, "gradients": gradients, "bytes": held}


# %% [markdown] id="count-why"
# What is compared and counted:

# %% [markdown] id="count-why" lang="zh" of="87727a59"
# 比较什么、怎样计数：


# %% id="count"
def watched(model):
    """Return three weights whose gradients are compared: the embedding, one in the first block, one in the last."""
    blocks = model.model.layers
    weights = (model.model.embed_tokens, blocks[0].mlp.down_proj, blocks[-1].self_attn.q_proj)
    return {name: part.weight for name, part in zip(("embedding", "first MLP", "last attention"), weights, strict=True)}


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def local_part(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_bytes_by_part(model, optimizer, saved):
    """Count what this process holds after a step."""
    states = getattr(optimizer, "optim", optimizer).state.values()  # ZeRO-1 wraps the optimizer of its own part
    tensors = {
        "parameters": list(model.parameters()),
        "gradients": [weight.grad for weight in model.parameters() if weight.grad is not None],
        "optimizer": [state[moment] for state in states for moment in ("exp_avg", "exp_avg_sq")],
    }
    counted = {name: sum(local_part(tensor).nbytes for tensor in held) for name, held in tensors.items()}
    return counted | {"activations": saved["bytes"]}


@contextmanager
def saved_for_backward(model):
    """Count the bytes that autograd saves in the body, each storage once, the model's own weights left out."""
    weights = {local_part(weight).untyped_storage().data_ptr() for weight in model.parameters()}
    storages, saved = {}, {"bytes": 0}

    def pack(tensor):
        storage = local_part(tensor).untyped_storage()
        is_weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if not is_weight and storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
    saved["bytes"] = sum(storage.nbytes() for storage in storages.values())


# %% id="one"
model = load_model()
parameters = sum(weight.numel() for weight in model.parameters())
one = take_steps(model, adamw(model.parameters()))
del model  # its memory is for the two processes
print(f"{parameters / 1e6:.1f}M parameters, loss {[round(loss, 4) for loss in one['losses'].tolist()]}")
for name, count in one["bytes"].items():
    print(f"{name:<12} {count / 2**20:>7.0f} MiB")

# %% [markdown] id="launch-why"
# ## Two processes
# `torchrun` starts the same script several times and tells each process its rank. So the next cell writes functions of this
# notebook into a script, starts it and reads what each process returned. The script is `runs/14_scale_out/two.py`: open
# it. (`accelerate.notebook_launcher` forks the notebook's own process instead, which fails once the notebook has used a
# GPU, and on Colab without a second GPU it runs one process.) When a launch is interrupted, `torchrun` gets a
# termination signal and ends its processes.

# %% [markdown] id="launch-why" lang="zh" of="8ae7738e"
# ## 启动两个进程
# `torchrun` 把同一个脚本启动多次，并告诉每个进程它的 rank（编号）。下一格把 notebook 里的函数写成脚本、启动它，再读回每个进程的返回值。脚本是 `runs/14_scale_out/two.py`，可以打开看看。（`accelerate.notebook_launcher` 的做法是 fork notebook 自己的进程：notebook 用过 GPU 之后就会失败，在只有一张卡的 Colab 上则只跑一个进程。）启动被打断时，`torchrun` 会收到终止信号，由它结束各个进程。

# %% id="launch"
SCRIPT = """
import gc
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

job = torch.load("{folder}/job.pt")

{definitions}

dist.init_process_group("gloo", timeout=timedelta(seconds=300))  # "nccl" on GPUs
for function in ({names},):
    torch.save(function(dist.get_rank()), f"{folder}/{{function.__name__}}_{{dist.get_rank()}}.pt")
    gc.collect()  # a DDP model refers to itself and would stay
dist.destroy_process_group()
"""
common = [load_model, adamw, answer_loss_sum, take_steps, watched, whole, local_part]
common += [held_bytes_by_part, saved_for_backward]
# One thread each: two processes share the cores. No GPU is seen: what follows runs on CPUs everywhere.
environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


def start(*command):
    """Run a command; return its exit code and what it said."""
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, *map(str, command)], env=environment, **pipe) as process:
        try:
            said, _ = process.communicate()
        finally:
            process.terminate()
    return process.returncode, said


torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def on_two_processes(*functions):
    """Run the functions, one after the other, on two processes; return name -> what each process returned."""
    definitions = "\n\n".join(inspect.getsource(part) for part in (*common, *functions))
    names = [function.__name__ for function in functions]
    (folder / "two.py").write_text(SCRIPT.format(folder=folder, definitions=definitions, names=", ".join(names)))
    code, said = start(*torchrun, folder / "two.py")
    assert code == 0, said[-3000:]
    return {name: [torch.load(folder / f"{name}_{rank}.pt") for rank in range(2)] for name in names}


# %% [markdown] id="allreduce-why"
# ## Split the data: all-reduce
# Every process has the whole model and its own rows. `all_reduce` adds a tensor up over all processes and gives every one
# the sum. Do that with each gradient, divide by the number of processes, and all take the same step. DDP
# (`DistributedDataParallel`) does it in buckets while the backward pass still runs.
#
# Both must start from the same weights. `own_start` redraws one matrix with a seed of its own in each process, as a new LoRA
# matrix or a new head would be; DDP copies the weights of process 0 to all when it is built, the code by hand does not.

# %% [markdown] id="allreduce-why" lang="zh" of="8cade5fc"
# ## 切分数据：all-reduce
# 每个进程都有完整的模型和自己的那份数据。`all_reduce` 把一个张量在所有进程上求和，并让每个进程都拿到结果。对每个梯度这样做，再除以进程数，各进程的更新就完全相同。DDP（`DistributedDataParallel`）在反向传播还没结束时就开始分桶做这件事。
#
# 起点必须相同。`own_start` 在每个进程里用各自的随机种子重新初始化一个矩阵，新建的 LoRA 矩阵或输出头就是这样来的。DDP 在构造时会把 0 号进程的权重广播给所有进程，手写的代码不会。


# %% id="allreduce"
def average_gradients(model):
    """Give every process the mean of all processes' gradients."""
    for weight in model.parameters():
        dist.all_reduce(weight.grad)  # the sum
        weight.grad /= dist.get_world_size()


def by_hand(rank):
    model = load_model()
    return take_steps(model, adamw(model.parameters()), slice(rank, None, 2), 2, average=average_gradients)


def ddp(rank):
    model = load_model()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    return take_steps(model, adamw(model.parameters()), slice(rank, None, 2), 2, wrapped)


# %% id="own-start"
def redrawn(rank):
    torch.manual_seed(rank)
    model = load_model()
    nn.init.normal_(model.model.layers[-1].mlp.down_proj.weight, std=0.02)
    return model


def distance(model):
    """Return how far a weight of this process is from that of process 0."""
    weight = model.model.layers[-1].mlp.down_proj.weight.detach()
    first = weight.clone()
    dist.broadcast(first, src=0)
    return (weight - first).abs().max().item()


def own_start(rank):
    model = redrawn(rank)
    result = take_steps(model, adamw(model.parameters()), slice(rank, None, 2), 2, average=average_gradients)
    return result | {"distance": distance(model)}


def own_start_ddp(rank):
    model = redrawn(rank)
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    result = take_steps(model, adamw(model.parameters()), slice(rank, None, 2), 2, wrapped)
    return result | {"distance": distance(model)}


common += [average_gradients, redrawn, distance]
results = on_two_processes(by_hand, ddp, own_start, own_start_ddp)


# %% [markdown] id="equal-why"
# Equal to one process? The losses of all steps are compared (the second already depends on the first update), and the
# first gradient, as the length of the difference divided by the length of the gradient.

# %% [markdown] id="equal-why" lang="zh" of="6ea7b868"
# 与单进程相等吗？比较每一步的损失（第二步已经取决于第一次更新），以及第一步的梯度：差的长度除以梯度的长度。


# %% id="equal"
def compared(result):
    """Return the largest difference of a loss to one process's, and the largest relative one of a gradient."""
    losses = sum(part["losses"] for part in result) * result[0]["copies"] / 2
    pairs = [(gradient, one["gradients"][name]) for part in result for name, gradient in part["gradients"].items()]
    of_gradients = max(((found - wanted).norm() / wanted.norm()).item() for found, wanted in pairs)
    return (losses - one["losses"]).abs().max().item(), of_gradients


differences = {name: compared(results[name]) for name in ("by_hand", "ddp")}
for name, (of_losses, of_gradients) in differences.items():
    print(f"{name:<16} loss {of_losses:.1e} from one process, gradient {of_gradients:.1e}")
    assert of_losses <= 1e-3 and of_gradients <= 1e-4
for name in ("own_start", "own_start_ddp"):
    process_0, process_1 = (round(part["losses"][-1].item(), 4) for part in results[name])
    print(
        f"{name:<16} last shares of the loss {process_0}, {process_1}; a weight differs by {results[name][1]['distance']:.3f}"
    )
assert results["own_start_ddp"][1]["distance"] == 0

# %% [markdown] id="own-start-seen"
# Nothing in the losses shows that `own_start` trains two different models, each with half of its gradient taken from the
# other. Only comparing the weights does: broadcast a checksum once in a while, or let DDP and FSDP do the start.

# %% [markdown] id="own-start-seen" lang="zh" of="72c1ac20"
# 从损失看不出 `own_start` 其实在训练两个不同的模型，而且各自有一半梯度来自对方。只有比较权重才看得出来：隔一段时间广播一次校验和，或者把初始化交给 DDP、FSDP。

# %% [markdown] id="sampler-why"
# ## Which process gets which rows?
# A `DistributedSampler` distributes the rows. Seven rows for two processes: all must take the same number of steps,
# or one would wait in an all-reduce for ever. So one row is repeated; `drop_last=True` leaves one out instead. In
# training that hardly matters; in evaluation the repeated row is counted twice. And the order changes from epoch to
# epoch only if `set_epoch` is called: Trainer and accelerate do it, a loop by hand forgets it.

# %% [markdown] id="sampler-why" lang="zh" of="dae2f58e"
# ## 数据怎么分？
# `DistributedSampler` 负责分配数据。七条数据给两个进程：大家的步数必须一样，否则总有一个进程在 all-reduce 里永远等下去。所以有一条会重复；`drop_last=True` 则改为丢掉一条。训练时影响不大，评测时重复的那条就被算了两次。另外，只有调用了 `set_epoch`，每个 epoch 的顺序才会变：Trainer 和 accelerate 会调用，手写循环常常忘记。

# %% id="sampler"
seven = list("abcdefg")
for drop_last in (False, True):
    samplers = [DistributedSampler(seven, 2, rank, seed=seed, drop_last=drop_last) for rank in range(2)]
    parts = [[seven[i] for i in sampler] for sampler in samplers]
    print(f"drop_last={drop_last!s:<5} {' '.join(parts[0])} | {' '.join(parts[1])}")
    seen = parts[0] + parts[1]
    repeated = [row for row in seven if seen.count(row) > 1]
    print(f"  rows seen twice: {repeated}, never: {[row for row in seven if row not in seen]}")

# %% id="set-epoch"
for calls_set_epoch in (False, True):
    sampler, orders_seen = DistributedSampler(seven, 2, 0, seed=seed), []
    for epoch in range(3):
        if calls_set_epoch:
            sampler.set_epoch(epoch)
        orders_seen.append(" ".join(seven[i] for i in sampler))
    print(f"set_epoch {'called' if calls_set_epoch else 'missing'}: process 0 sees {orders_seen}")

# %% [markdown] id="batch-why"
# ## Effective batch and learning rate
# Examples per optimizer step = `per_device_train_batch_size` x `gradient_accumulation_steps` x processes. Keep it when you
# add processes (accumulate less) and the run stays the same run. Let it grow and there are fewer steps per epoch; the
# learning rate then has to be chosen again: with SGD in proportion to the batch (Goyal et al. 2017), with Adam nearer
# to its square root (Malladi et al. 2022). Both are starting points for a search on validation rows (lesson 06).

# %% [markdown] id="batch-why" lang="zh" of="bdd21ef9"
# ## 有效批量与学习率
# 每次更新的样本数 = `per_device_train_batch_size` x `gradient_accumulation_steps` x 进程数。加进程时让它不变（少累积几次），训练就还是原来的训练。任它变大，每个 epoch 的更新次数就变少，学习率要重新选：SGD 按批量成正比放大（Goyal 等，2017），Adam 更接近按平方根放大（Malladi 等，2022）。两者都只是在验证集上搜索的起点（第 06 课）。

# %% id="batch"
for processes, accumulation in ((1, 8), (2, 4), (8, 1), (8, 8)):
    examples = 4 * accumulation * processes
    growth = examples / 32
    print(
        f"{processes} processes, accumulation {accumulation}: {examples:>3} examples a step, "
        f"learning rate x {growth:g} (SGD) or x {math.sqrt(growth):.2g} (Adam)"
    )

# %% [markdown] id="zero-why"
# ## Split the state: ZeRO and FSDP
# DDP holds everything in every process: with float32 and AdamW 16 bytes a parameter. ZeRO (Rajbhandari et al. 2020) splits
# it in stages: the optimizer's moments (1), the gradients too (2), the weights too (3). Only whole weights can multiply, so
# from stage 3 on they are collected block by block (`all_gather`) and dropped again.
#
# | | split | in PyTorch | in DeepSpeed |
# |---|---|---|---|
# | ZeRO-1 | moments | `ZeroRedundancyOptimizer` | `"stage": 1` |
# | ZeRO-2 | + gradients | FSDP `SHARD_GRAD_OP`; FSDP2 `reshard_after_forward=False` comes close | `"stage": 2` |
# | ZeRO-3 | + weights | FSDP `FULL_SHARD`, FSDP2 `fully_shard` | `"stage": 3` |
#
# `SHARD_GRAD_OP` splits the weights too between steps, but keeps them whole from the forward to the backward pass; so at
# the peak it holds what ZeRO-2 holds.
#
# **Predict before you run:** parameters, gradients and two moments, all float32. What share of one process's bytes does
# each of *two* processes hold under ZeRO-1?

# %% [markdown] id="zero-why" lang="zh" of="e540e107"
# ## 切分训练状态：ZeRO 与 FSDP
# DDP 在每个进程里都放一整套：float32 加 AdamW，每个参数 16 字节。ZeRO（Rajbhandari 等，2020）分阶段切分：先切优化器的两个矩（1），再切梯度（2），再切权重（3）。矩阵乘法需要完整的权重，所以从第 3 阶段起要逐个 Transformer 块收集（`all_gather`），用完就丢。
#
# | | 切分什么 | PyTorch 里 | DeepSpeed 里 |
# |---|---|---|---|
# | ZeRO-1 | 一阶矩、二阶矩 | `ZeroRedundancyOptimizer` | `"stage": 1` |
# | ZeRO-2 | 再加梯度 | FSDP `SHARD_GRAD_OP`；FSDP2 `reshard_after_forward=False` 与之接近 | `"stage": 2` |
# | ZeRO-3 | 再加权重 | FSDP `FULL_SHARD`、FSDP2 `fully_shard` | `"stage": 3` |
#
# `SHARD_GRAD_OP` 在两步之间也切分权重，但从前向到反向一直保持完整，所以峰值与 ZeRO-2 相当。
#
# **先预测，再运行：** 参数、梯度和两个矩，全是 float32。用 ZeRO-1 时，*两个*进程各自占单进程的百分之多少？

# %% id="predict"
guess_zero1 = 50  # your guess, in percent


# %% id="zero"
def zero1(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = load_model()
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # Each process steps its own part of the weights, then sends it to the others.
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=job["learning_rate"])
    return take_steps(model, optimizer, slice(rank, None, 2), 2, wrapped)


def fsdp2(rank):
    from torch.distributed.fsdp import fully_shard

    model = load_model()
    for block in model.model.layers:
        fully_shard(block)  # collected and dropped as one
    fully_shard(model)
    return take_steps(model, adamw(model.parameters()), slice(rank, None, 2), 2)


# %% [markdown] id="tensor-why"
# ## Split the matrices: tensor parallel
# Both processes see the same rows, and each holds half of every matrix. In an MLP the first matrices are split by *outputs*
# (column-parallel), the last by *inputs* (row-parallel): the halves never need each other until the last product, where
# one all-reduce adds two partial sums (Shoeybi et al. 2019). Four numbers first, with a matrix (2, 2) on either side:

# %% [markdown] id="tensor-why" lang="zh" of="294bba97"
# ## 切分矩阵：张量并行
# 两个进程看到同样的数据，各持有每个矩阵的一半。在 MLP 里，前面的矩阵按*输出*切（column-parallel），最后一个按*输入*切（row-parallel）：中间互不依赖，到最后一个乘积才用一次 all-reduce 把两个部分和加起来（Shoeybi 等，2019）。先看四个数的例子，前后各一个 (2, 2) 矩阵：

# %% id="tensor-toy"
x = torch.tensor([1.0, 2.0])
up, down = torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.tensor([[1.0, 3.0], [2.0, -1.0]])
partial_sums = [down[:, [i]] @ torch.relu(up[[i]] @ x) for i in range(2)]
print("process 0:", partial_sums[0].tolist(), " process 1:", partial_sums[1].tolist())
print("their sum:", sum(partial_sums).tolist(), " in one piece:", (down @ torch.relu(up @ x)).tolist())


# %% id="tensor"
def tensor_parallel(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = load_model()
    plan = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    if model.config.num_attention_heads % 2 == model.config.num_key_value_heads % 2 == 0:  # a head stays in one piece
        plan |= {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
        plan |= {"self_attn.o_proj": RowwiseParallel()}
    for block in model.model.layers:
        parallelize_module(block, init_device_mesh("cpu", (2,)), plan)
    return take_steps(model, adamw(model.parameters()))


config = AutoConfig.from_pretrained(model_path)
heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
attention_split = heads % 2 == kv_heads % 2 == 0
print(
    f"{heads} heads and {kv_heads} key-value heads: attention {'is' if attention_split else 'cannot be'} split over 2"
)

# %% [markdown] id="tensor-note"
# `from_pretrained(..., tp_plan="auto")` applies the plan that a model's own code carries, where its heads divide. An
# all-reduce in every layer, forward and backward, needs the fastest links: tensor parallel stays inside one machine.

# %% [markdown] id="tensor-note" lang="zh" of="ce84fe7d"
# `from_pretrained(..., tp_plan="auto")` 会套用模型代码自带的切分方案，前提是头数能整除。每层的前向和反向都有 all-reduce，需要最快的互连，所以张量并行只在一台机器内部用。

# %% [markdown] id="pipeline-why"
# ## Split the layers: pipeline
# Process 0 has the embedding and the first half of the blocks, process 1 the second half, the last norm and the output
# layer. Only hidden states travel forward, their gradients back. The batch goes through in micro-batches, so that both can
# work at once: with p stages and m micro-batches a share (p - 1) / (m + p - 1) of the time is idle (the bubble).
#
# A trap that only tied models have: embedding and output layer are *one* matrix, and now live in two processes. Each gets
# its part of the gradient; both need the sum.

# %% [markdown] id="pipeline-why" lang="zh" of="55d459af"
# ## 切分层：流水线并行
# 0 号进程有嵌入层和前一半的块，1 号进程有后一半的块、最后的归一化和输出层。向前只传隐藏状态，向后只传它的梯度。一个批次切成若干微批次依次通过，让两个进程能同时干活：p 个阶段、m 个微批次时，有 (p - 1) / (m + p - 1) 的时间空闲（气泡）。
#
# 权重绑定（tied）的模型有个坑：嵌入层与输出层是*同一个*矩阵，现在却分在两个进程里。各自只得到一部分梯度，而两边都需要总和。


# %% id="pipeline"
def make_stage(model, rank):
    """Cut the model in two; return this process's half."""
    body, half = model.model, len(model.model.layers) // 2
    end = body.embed_tokens if rank == 0 else model.lm_head
    if rank == 0:
        body.layers, body.norm = body.layers[:half], nn.Identity()
    else:
        body.layers, body.embed_tokens = body.layers[half:], None

    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.end = body, end

        def forward(self, arriving):
            if rank == 0:
                return self.body(input_ids=arriving, use_cache=False).last_hidden_state
            return self.end(self.body(inputs_embeds=arriving, use_cache=False).last_hidden_state)

    return Stage()


def pipeline(rank):
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    model = load_model()
    compared_weights = watched(model)
    part = make_stage(model, rank)
    optimizer, stage = adamw(part.parameters()), PipelineStage(part, rank, 2, torch.device("cpu"))
    losses, gradients = [], {}
    for batch in job["batches"]:
        micro_losses = []
        schedule = ScheduleGPipe(
            stage,
            n_microbatches=2,
            loss_fn=lambda logits, labels, tokens=batch["tokens"]: answer_loss_sum(logits, labels) / tokens,
            scale_grads=False,  # the loss is divided by all tokens already
        )
        with saved_for_backward(part) as saved:
            if rank == 0:
                schedule.step(batch["input_ids"])
            else:
                schedule.step(target=batch["labels"], losses=micro_losses)
        if model.config.tie_word_embeddings:
            dist.all_reduce(part.end.weight.grad)
        here = {name: weight for name, weight in compared_weights.items() if weight.grad is not None}
        gradients = gradients or {name: whole(weight.grad) for name, weight in here.items()}
        optimizer.step()
        held = held_bytes_by_part(part, optimizer, saved)
        optimizer.zero_grad()
        losses.append(float(sum(micro_losses)))  # process 0 sees no loss
    return {"losses": torch.tensor(losses), "copies": 2, "gradients": gradients, "bytes": held}


common += [make_stage]

# %% id="split"
results |= on_two_processes(zero1, fsdp2, tensor_parallel, pipeline)
splits = {
    "ddp": "DDP",
    "zero1": "ZeRO-1",
    "fsdp2": "FSDP2 (ZeRO-3)",
    "tensor_parallel": "tensor parallel",
    "pipeline": "pipeline",
}
for name, label in splits.items():
    differences[name] = compared(results[name])
    print(f"{label:<16} loss {differences[name][0]:.1e} from one process, gradient {differences[name][1]:.1e}")
    assert differences[name][0] <= 1e-3 and differences[name][1] <= 1e-4

# %% [markdown] id="bytes-why"
# ## What does each process hold?
# Predicted by arithmetic, counted from the tensors of the process that holds most. With `P` parameters, `N` processes and 4
# bytes a number: DDP holds `4P` of weights, `4P` of gradients, `8P` of moments; a ZeRO stage divides its parts by `N`. Tensor
# parallel divides only the matrices that it splits. A pipeline holds its own blocks, and a tied matrix at both ends.
# `ZeroRedundancyOptimizer` deals out whole matrices: one that is most of the model leaves the processes uneven.

# %% [markdown] id="bytes-why" lang="zh" of="9242c3ac"
# ## 每个进程占多少？
# 先用算术预测，再从张量里数（取占用最多的进程）。`P` 个参数、`N` 个进程、每个数 4 字节：DDP 占权重 `4P`、梯度 `4P`、两个矩 `8P`；ZeRO 的每个阶段把对应的部分除以 `N`。张量并行只除以它切开的那些矩阵。流水线的每个进程只有自己那几个块，绑定的矩阵则两头各一份。`ZeroRedundancyOptimizer` 按整个矩阵分配，某个矩阵占了模型大半时，各进程就不均匀。


# %% id="bytes"
def zero_bytes(parameters, processes, stage, weight_bytes=4, gradient_bytes=4, state_bytes=8):
    """Return the bytes of (weights, gradients, optimizer state) per process; stage 0 is DDP."""
    weights, gradients, state = (parameters * size for size in (weight_bytes, gradient_bytes, state_bytes))
    return (
        weights / (processes if stage >= 3 else 1),
        gradients / (processes if stage >= 2 else 1),
        state / (processes if stage >= 1 else 1),
    )


mlp = 3 * config.hidden_size * config.intermediate_size * config.num_hidden_layers
attention = 2 * (heads + kv_heads) * config.head_dim * config.hidden_size * config.num_hidden_layers
embedding = config.vocab_size * config.hidden_size
in_one_process = {
    "tensor_parallel": parameters - (mlp + attention * attention_split) / 2,
    "pipeline": (parameters + (embedding if config.tie_word_embeddings else 0)) / 2,
}
predicted = {"ddp": zero_bytes(parameters, 2, 0), "zero1": zero_bytes(parameters, 2, 1)}
predicted |= {"fsdp2": zero_bytes(parameters, 2, 3)}
predicted |= {name: zero_bytes(count, 1, 0) for name, count in in_one_process.items()}
parts = ("parameters", "gradients", "optimizer")
counted = {
    name: {part: max(process["bytes"][part] for process in results[name]) for part in (*parts, "activations")}
    for name in splits
}
print(f"{'MiB per process':<16}{''.join(f'{part:>18}' for part in parts)}{'activations':>14}")
prediction_error = 0
for name, label in splits.items():
    cells = []
    for part, expected in zip(parts, predicted[name], strict=True):
        cells.append(f"{expected / 2**20:.0f} -> {counted[name][part] / 2**20:.0f}")
        prediction_error = max(prediction_error, abs(expected / counted[name][part] - 1))
    print(f"{label:<16}{''.join(f'{cell:>18}' for cell in cells)}{counted[name]['activations'] / 2**20:>14.0f}")
print(f"largest error of a prediction: {prediction_error:.1%}")

# %% id="answer-zero1"
total = sum(one["bytes"][part] for part in parts)
zero1_share = sum(counted["zero1"][part] for part in parts) / total
print(f"you predicted {guess_zero1}% of one process's bytes under ZeRO-1, counted {zero1_share:.0%}")

# %% id="bytes-plot"
fig, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
labels = ["one process", *splits.values()]
left = [0.0] * len(labels)
for part, color in zip((*parts, "activations"), ("#0072B2", "#56B4E9", "#E69F00", "#999999"), strict=True):
    widths = [one["bytes"][part] / 2**20] + [counted[name][part] / 2**20 for name in splits]
    ax.barh(labels, widths, left=left, color=color, label=part)
    left = [edge + width for edge, width in zip(left, widths, strict=True)]
for row, name in enumerate(splits, start=1):
    ax.plot(
        [sum(predicted[name]) / 2**20] * 2,
        [row - 0.4, row + 0.4],
        "k:",
        label="predicted, no activations" if row == 1 else None,
    )
ax.invert_yaxis()
ax.set(xlabel="MiB in one process", title="What does each process hold?")
ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
plt.show()

# %% id="activations"
alike = counted["fsdp2"]["activations"] / counted["ddp"]["activations"]
print(
    f"activations: DDP saves {counted['ddp']['activations'] / one['bytes']['activations']:.0%} of what one process saves "
    f"(half of the rows), FSDP2 saves {alike:.0%} of what DDP saves"
)

# %% [markdown] id="activations-why"
# ZeRO splits what a *parameter* costs. What a *token* costs stays: half of the rows, half of the activations, with DDP as
# with FSDP2. If one example alone is too long, ZeRO does not help: recomputation (lesson 06), tensor parallel or
# context parallel (a split along the sequence) do.

# %% [markdown] id="activations-why" lang="zh" of="d6688e23"
# ZeRO 切的是每个*参数*的开销，每个 *token* 的开销不变：数据减半，激活值减半，DDP 和 FSDP2 都一样。如果单个样本就太长，ZeRO 帮不上忙，要靠重计算（第 06 课）、张量并行，或沿序列切分的 context parallel。

# %% [markdown] id="offload-why"
# ## Offload: without a second process
# What doesn't fit can also wait in slower memory. First weights on disk: accelerate loads each block when its turn
# comes. Then AdamW's moments in a file, mapped into memory: the system keeps in RAM what it has room for. DeepSpeed's
# `offload_optimizer` and FSDP2's `CPUOffloadPolicy` do the same from the GPU to the CPU's memory. The results are
# equal; the cost is time.

# %% [markdown] id="offload-why" lang="zh" of="68346076"
# ## 卸载（offload）：不用第二个进程
# 放不下的东西也可以放到更慢的存储里。先把权重放到磁盘：轮到哪个块，accelerate 才加载哪个。再把 AdamW 的两个矩放进一个映射到内存的文件：内存够时系统会留在 RAM 里。DeepSpeed 的 `offload_optimizer` 和 FSDP2 的 `CPUOffloadPolicy` 做同样的事，只是从显存搬到内存。结果相等，代价是时间。

# %% id="offload-weights"
reference = load_model().eval()
places = {"model.layers": "disk", "model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
places |= {"model.rotary_emb": "cpu"}
on_disk = AutoModelForCausalLM.from_pretrained(
    model_path, dtype=torch.float32, device_map=places, offload_folder=folder / "offload"
).eval()
in_memory = sum(weight.numel() for weight in on_disk.parameters() if weight.device.type != "meta") / parameters
with torch.inference_mode():
    ids = batches[0]["input_ids"][:1]
    offload_max_abs_diff = (on_disk(input_ids=ids).logits - reference(input_ids=ids).logits).abs().max().item()
print(f"{in_memory:.0%} of the weights in memory, logits differ by {offload_max_abs_diff:.1e}")
assert offload_max_abs_diff <= 1e-4

# %% id="offload-moments"
moments = torch.from_file(str(folder / "moments.bin"), shared=True, size=2 * parameters)  # float32, zeros at first
moments.zero_()
model = load_model()
optimizer = adamw(model.parameters())
for weight in model.parameters():
    m, v = moments[: weight.numel()], moments[weight.numel() : 2 * weight.numel()]
    moments = moments[2 * weight.numel() :]
    optimizer.state[weight] = {"step": torch.tensor(0.0), "exp_avg": m.view_as(weight), "exp_avg_sq": v.view_as(weight)}
offloaded = take_steps(model, optimizer)
moments_max_abs_diff = (offloaded["losses"] - one["losses"]).abs().max().item()
print(
    f"moments in a file of {(folder / 'moments.bin').stat().st_size / 2**20:.0f} MiB: loss differs by {moments_max_abs_diff:.1e}"
)
del reference, on_disk, model, optimizer, moments, m, v
(folder / "moments.bin").unlink()

# %% [markdown] id="trap-why"
# ## The one-process trap
# Ask accelerate for two processes on a CPU. The command below looks right and ends with exit code 0. Count the lines:

# %% [markdown] id="trap-why" lang="zh" of="271e14b5"
# ## 只起了一个进程
# 让 accelerate 在 CPU 上起两个进程。下面的命令看起来没错，退出码也是 0。数一数输出的行数：

# %% id="trap"
WHO = """
import sys
from accelerate import PartialState

state = PartialState(cpu=True)  # without it accelerate looks for GPUs alone, and says 1 under any launcher
print(f"process {state.process_index} of {state.num_processes}", flush=True)
if "check" in sys.argv:
    assert state.num_processes == 2, f"wanted 2 processes, have {state.num_processes}"  # the one line
"""
(folder / "who.py").write_text(WHO)
accelerate = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
accelerate += ["--dynamo_backend", "no", "--num_processes", "2"]
trapped = {}
for arguments in ("who.py", "who.py check"):
    script, *check = arguments.split()
    trapped[arguments], said = start(*accelerate, "--cpu", folder / script, *check)
    print(f"accelerate launch --cpu --num_processes 2 {arguments}: exit {trapped[arguments]}")
    print(*[f"  {line}" for line in said.splitlines() if line.startswith(("process", "AssertionError"))], sep="\n")

# %% [markdown] id="trap-seen"
# With `--cpu`, accelerate starts the script once and leaves further processes to `mpirun`, without a warning. The
# loss falls all the same; the effective batch is half of what you asked for. `torchrun` and `accelerate launch
# --multi_gpu` do start two, on a CPU as well. Put the line into every script that you launch. Under FSDP also assert
# the wrapper's class, because a configuration that isn't read leaves plain DDP.

# %% [markdown] id="trap-seen" lang="zh" of="a743f028"
# 加了 `--cpu`，accelerate 只把脚本启动一次，第二个进程要靠 `mpirun`，而且没有任何警告。损失照样下降，但有效批量只有你要的一半。`torchrun` 和 `accelerate launch --multi_gpu` 会真的启动两个，在 CPU 上也一样。每个要启动的脚本里都加上这一行断言；用 FSDP 时还要断言包装类，因为配置没被读到时跑的就是普通 DDP。

# %% [markdown] id="handoff-why"
# ## Hand over: one script, any launcher
# Training for real is a script. It does not mention ranks: `Trainer` reads rank and world size from the environment that the
# launcher sets, deals out the rows and counts the tokens of all processes. LoRA in one process with all rows, then the
# same script under accelerate in two: the adapters must agree.

# %% [markdown] id="handoff-why" lang="zh" of="61a951e4"
# ## 交给启动器：一个脚本，任何启动方式
# 真正的训练是一个脚本。它不提 rank：`Trainer` 从启动器设置的环境变量里读 rank 和 world size，负责分数据、统计所有进程的 token 数。先用单进程在全部数据上训练 LoRA，再由 accelerate 用两个进程启动同一个脚本：两个适配器应当一致。

# %% id="handoff"
TRAIN = """
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

output_dir, processes = sys.argv[1], int(sys.argv[2])
job = torch.load("{folder}/job.pt")
rows = [
    {{"input_ids": ids, "labels": labels}}
    for batch in job["batches"]
    for ids, labels in zip(batch["input_ids"], batch["labels"])
]
args = TrainingArguments(
    output_dir,
    max_steps=len(job["batches"]),
    per_device_train_batch_size=max(1, {batch_size} // processes),
    learning_rate=job["learning_rate"],
    use_cpu=not torch.cuda.is_available(),
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
)
assert args.world_size == processes, f"wanted {{processes}} processes, have {{args.world_size}}"
set_seed(0)
model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer = Trainer(model, args, train_dataset=rows)
trainer.train()
if trainer.is_world_process_zero():
    model.save_pretrained(output_dir)
    print("processes:", args.world_size, "wrapped in:", type(trainer.model_wrapped).__name__)
"""
(folder / "train.py").write_text(TRAIN.format(folder=folder, batch_size=batch_size))
adapters = []
for processes, launcher in ((1, []), (2, [*accelerate, "--multi_gpu"])):
    output_dir = folder / f"adapter_{processes}"
    code, said = start(*launcher, folder / "train.py", output_dir, processes)
    assert code == 0, said[-3000:]
    print(*[line for line in said.splitlines() if line.startswith("processes:")])
    adapters.append(load_file(output_dir / "adapter_model.safetensors"))
# B starts at zero: what it holds now is what was trained.
trained_b = [
    torch.cat([weight.flatten() for name, weight in adapter.items() if "lora_B" in name]) for adapter in adapters
]
adapter_difference = ((trained_b[1] - trained_b[0]).norm() / trained_b[0].norm()).item()
print(f"the trained B matrices differ by {adapter_difference:.1e} of their length")
assert adapter_difference <= 1e-2

# %% [markdown] id="files-why"
# ## Files for what this machine doesn't have
# The same `train.py` under DeepSpeed, Slurm and Ray, started in the course folder; for Megatron, which brings its own
# model code, a conversion. **Not run here**: the cell writes the files and checks their syntax, no more.
#
# - **DeepSpeed**: `TrainingArguments(..., deepspeed="runs/14_scale_out/ds_zero3.json")`, any launcher. Its first
#   start compiles for minutes; if it is killed then, delete the lock in its extensions folder, or the next start
#   waits for ever.
# - **Slurm**: one `torchrun` per node, all with the same rendezvous address.
# - **Ray**: `TorchTrainer` starts a function on its workers.
# - **Megatron-Bridge**: Hugging Face weights to Megatron and back, split by tensor and pipeline at once.

# %% [markdown] id="files-why" lang="zh" of="322ea975"
# ## 本机没有的环境：只写文件
# 同一个 `train.py`，在课程文件夹里用 DeepSpeed、Slurm、Ray 启动；Megatron 有自己的模型代码，需要转换权重。**这些在这里都没有运行**：下一格只写出文件并检查语法。
#
# - **DeepSpeed**：`TrainingArguments(..., deepspeed="runs/14_scale_out/ds_zero3.json")`，任何启动器都行。第一次启动要编译几分钟；如果这时被杀掉，要删掉扩展目录里的锁文件，否则下次启动会一直等。
# - **Slurm**：每个节点一个 `torchrun`，使用同一个 rendezvous 地址。
# - **Ray**：`TorchTrainer` 在各个 worker 上启动一个函数。
# - **Megatron-Bridge**：在 Hugging Face 权重与 Megatron 之间转换，同时按张量和流水线切分。

# %% id="files"
deepspeed = {
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
slurm = """#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --rdzv-id "$SLURM_JOB_ID" \\
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" runs/14_scale_out/train.py out 16
"""
ray = """import runpy
import sys
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def train_on_a_worker():
    sys.argv = ["train.py", "out", "8"]
    runpy.run_path("runs/14_scale_out/train.py", run_name="__main__")


TorchTrainer(train_on_a_worker, scaling_config=ScalingConfig(num_workers=8, use_gpu=True)).fit()
"""
megatron = """from megatron.bridge import AutoBridge

bridge = AutoBridge.from_hf_pretrained("Qwen/Qwen2.5-72B-Instruct")
provider = bridge.to_megatron_provider()
provider.tensor_model_parallel_size = 8
provider.pipeline_model_parallel_size = 2
provider.finalize()
model = provider.provide_distributed_model(wrap_with_ddp=False)
"""
files = {
    "ds_zero3.json": json.dumps(deepspeed, indent=2),
    "job.slurm": slurm,
    "ray_train.py": ray,
    "megatron.py": megatron,
}
for name, text in files.items():
    (folder / name).write_text(text)
    if name.endswith(".py"):
        ast.parse(text)
bash_code = subprocess.run(["bash", "-n", folder / "job.slurm"]).returncode
print(
    "written, not run:", ", ".join(files), "| bash finds the Slurm file", "well-formed" if bash_code == 0 else "broken"
)


# %% [markdown] id="70b-why"
# ## 70B on eight GPUs of 80 GB
# The same formula in mixed precision: 2 bytes of weights, 2 of gradients, 12 of optimizer state (float32 weights and
# two moments): 16 bytes a parameter. `ftlab.memory`, which lesson 04 introduced, also estimates the activations and
# the block that ZeRO-3 gathers, for training in pure bfloat16 (8 bytes a parameter). One example of 4,096 tokens per
# GPU, with recomputation.

# %% [markdown] id="70b-why" lang="zh" of="d2ad5d28"
# ## 八张 80 GB 的卡，训练 70B
# 同一个公式，换成混合精度：权重 2 字节，梯度 2 字节，优化器状态 12 字节（float32 权重加两个矩），每个参数共 16 字节。第 04 课介绍过的 `ftlab.memory` 还会算激活值，以及 ZeRO-3 收集起来的那个块，按纯 bfloat16（每个参数 8 字节）估算。每张卡一个 4,096 token 的样本，开重计算。

# %% id="70b"
big = memory.Decoder(
    layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128, intermediate=28672, vocabulary=128256, tied=False
)
print(f"{big.parameters / 1e9:.1f}B parameters; GiB per GPU")
for stage, label in enumerate(("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")):
    mixed = sum(zero_bytes(big.parameters, 8, stage, 2, 2, 12)) / 2**30
    needs = memory.estimate(
        big, memory.Training(1, 4096, big.parameters, checkpointing=True, embedding_trained=True, gpus=8, shard=stage)
    )
    print(
        f"{label:<7} mixed precision {mixed:>6.0f} + activations {needs.activations / 2**30:.0f}; "
        f"pure bfloat16, all in: {needs.peak / 2**30:>4.0f}{'  <- fits in 80 GB' if needs.peak < 79 * 2**30 else ''}"
    )
r = 16
lora = {"adapter_rank": r, "checkpointing": True}
sharded = memory.estimate(big, memory.Training(1, 4096, big.lora_parameters(r), gpus=8, shard=3, **lora))
quantized = memory.estimate(
    big, memory.Training(1, 4096, big.lora_parameters(r), linear_bytes=memory.NF4_DOUBLE_BYTES, **lora)
)
print(f"LoRA, ZeRO-3 on 8 GPUs: {sharded.peak / 2**30:.0f} each; QLoRA on a single GPU: {quantized.peak / 2**30:.0f}")

# %% [markdown] id="70b-note"
# Mixed precision adds the float32 copy: all of it split in eight is still more than such a GPU has. More GPUs, offload, or
# fewer trained weights are the three ways out; the last is why this course began with LoRA.

# %% [markdown] id="70b-note" lang="zh" of="d1b906be"
# 混合精度多出一份 float32 权重：全部切成八份，仍超过这样一张卡的显存。出路有三条：更多的卡、卸载、训练更少的权重。最后一条就是这门课从 LoRA 讲起的原因。

# %% [markdown] id="break-why"
# ## What goes wrong
# The most common hang: one process enters a collective that the other one skips. Here process 0 alone wants the mean
# loss "for its log". With the default timeout it waits and says nothing: half an hour under gloo, ten minutes under
# NCCL, where the GPU shows 100% use all the while. With a short timeout it fails, and `monitored_barrier` names who
# is missing.

# %% [markdown] id="break-why" lang="zh" of="72fcd318"
# ## 故意出错
# 最常见的卡死：一个进程进入了集合通信，另一个却跳过了。这里只有 0 号进程为了打日志去求平均损失。默认超时下它会一直等、什么也不说：gloo 半小时，NCCL 十分钟，期间 GPU 利用率还显示 100%。设了短超时就会报错，`monitored_barrier` 还能指出缺的是谁。


# %% id="break"
def hang(rank):
    short, asking = (dist.new_group(timeout=timedelta(seconds=2)) for _ in range(2))
    said = []
    if rank == 0:  # the mistake: a collective belongs to all processes
        try:
            dist.all_reduce(torch.ones(1), group=short)
        except RuntimeError as error:
            said.append(str(error))
        try:
            dist.monitored_barrier(asking, timeout=timedelta(seconds=1))
        except RuntimeError as error:
            said.append(str(error).splitlines()[0])
    else:
        time.sleep(4)  # goes on with its own work
    return said


for line in on_two_processes(hang)["hang"][0]:
    print(line.split("] ", 1)[-1])

# %% [markdown] id="break-fix"
# The fix: every process calls the collective, and only the printing is inside `if rank == 0`. On GPUs
# `TORCH_FR_BUFFER_SIZE` keeps a record of the last collectives, and `py-spy dump --pid` shows where a process waits.

# %% [markdown] id="break-fix" lang="zh" of="dec4763a"
# 修法：每个进程都调用集合通信，只把打印放在 `if rank == 0` 下面。在 GPU 上，`TORCH_FR_BUFFER_SIZE` 会记录最近的集合通信，`py-spy dump --pid` 能看到进程停在哪里。

# %% [markdown] id="experiment-why"
# ## Experiment
# How many GPUs, and which stage? Bytes of weights, gradients and optimizer state per GPU; the dotted line is one GPU's
# memory, and activations come on top.

# %% [markdown] id="experiment-why" lang="zh" of="f9fa5ed0"
# ## 动手试一试
# 要几张卡，用哪个阶段？图中是每张卡上权重、梯度和优化器状态的字节数；虚线是一张卡的显存，激活值另算。


# %% id="experiment"
def draw(billions, processes, memory_gib, trained):
    weights_trained = 1.0 if trained == "all weights" else 0.01
    _, ax = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
    names = ["DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    left = torch.zeros(4)
    # Frozen weights have neither gradients nor state.
    held = torch.tensor(
        [
            zero_bytes(billions * 1e9, processes, stage, 2, 2 * weights_trained, 12 * weights_trained)
            for stage in range(4)
        ]
    )
    for column, (part, color) in enumerate(
        zip(("weights", "gradients", "optimizer"), ("#0072B2", "#56B4E9", "#E69F00"), strict=True)
    ):
        ax.barh(names, held[:, column] / 2**30, left=left, color=color, label=part)
        left = left + held[:, column] / 2**30
    ax.axvline(memory_gib, linestyle=":", color="k", label=f"{memory_gib} GiB")
    ax.invert_yaxis()
    ax.set(xlabel="GiB per GPU, without activations", title="Which stage fits?")
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    plt.show()
    fitting = [name for name, need in zip(names, left.tolist(), strict=True) if need < memory_gib]
    print(f"fits: {', '.join(fitting) or 'none'}")


experiment.show(
    draw,
    billions=[7, 0.135, 1.5, 14, 32, 70],
    processes=[8, 1, 2, 4, 16, 32, 64],
    memory_gib=[80, 16, 24, 48, 141],
    trained=["all weights", "LoRA (1%)"],
)

# %% [markdown] id="exercise-scatter-why"
# ## Exercises
# Replace each `...` and run the cell. A wrong answer gets a hint, the next one a clearer hint; `ftlab course check 14`
# checks your saved copy of the whole lesson. Here a list stands for the processes: one entry each.
#
# **1.** The first half of an all-reduce: *reduce-scatter*. `vectors` holds one vector per process, all of the same length,
# which the number of processes divides. Return one piece per process: process i gets the i-th piece of the sum.

# %% [markdown] id="exercise-scatter-why" lang="zh" of="2348f4aa"
# ## 练习
# 把每个 `...` 换成你的答案，再运行单元格。答错会给提示，再答错提示会更具体；`ftlab course check 14` 检查你保存的整课练习。这里用列表代表各个进程，一项对应一个进程。
#
# **1.** all-reduce 的前一半：*reduce-scatter*。`vectors` 里每个进程一个向量，长度相同且能被进程数整除。为每个进程返回一段：第 i 个进程得到总和的第 i 段。

# %% id="exercise-scatter" tags=["exercise"]


def reduce_scatter(vectors):
    return ...  # your code


print(reduce_scatter([torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]))  # 11 and 22 once it is right

checks.check_reduce_scatter(reduce_scatter)

# %% [markdown] id="exercise-scatter-solution"
# <details><summary>Solution</summary>
#
# ```python
# def reduce_scatter(vectors):
#     return list(sum(vectors).chunk(len(vectors)))
# ```
#
# </details>

# %% [markdown] id="exercise-scatter-solution" lang="zh" of="252c9ad6"
# <details><summary>参考答案</summary>
#
# ```python
# def reduce_scatter(vectors):
#     return list(sum(vectors).chunk(len(vectors)))
# ```
#
# </details>

# %% [markdown] id="exercise-shard-why"
# **2.** The first FSDP flattens the weights of a block into one vector, pads it with zeros and cuts it into parts of equal
# length. Return the part of process `rank` of `processes`.

# %% [markdown] id="exercise-shard-why" lang="zh" of="9bddeab7"
# **2.** 第一代 FSDP 把一个块的权重展平成一个向量，末尾补零，再切成等长的几段。返回 `processes` 个进程中第 `rank` 个的那一段。

# %% id="exercise-shard" tags=["exercise"]


def shard(flat, rank, processes):
    return ...  # your code


print(shard(torch.tensor([1.0, 2.0, 3.0]), 1, 2))  # 3 and 0 once it is right

checks.check_shard(shard)

# %% [markdown] id="exercise-shard-solution"
# <details><summary>Solution</summary>
#
# ```python
# def shard(flat, rank, processes):
#     length = math.ceil(len(flat) / processes)
#     part = flat[rank * length : rank * length + length]
#     return torch.cat([part, torch.zeros(length - len(part))])
# ```
#
# </details>

# %% [markdown] id="exercise-shard-solution" lang="zh" of="493d167f"
# <details><summary>参考答案</summary>
#
# ```python
# def shard(flat, rank, processes):
#     length = math.ceil(len(flat) / processes)
#     part = flat[rank * length : rank * length + length]
#     return torch.cat([part, torch.zeros(length - len(part))])
# ```
#
# </details>

# %% [markdown] id="exercise-bytes-why"
# **3.** LoRA under ZeRO: `frozen` weights of 2 bytes each; `trained` weights of 4 bytes with a gradient of 4 and two moments of
# 4. How many bytes does each of `processes` hold under ZeRO stage `stage` (0: DDP), all parts together?

# %% [markdown] id="exercise-bytes-why" lang="zh" of="cb097818"
# **3.** LoRA 加 ZeRO：`frozen` 个冻结权重各 2 字节；`trained` 个训练权重各 4 字节，另有 4 字节梯度和两个各 4 字节的矩。ZeRO 第 `stage` 阶段（0 即 DDP）下，`processes` 个进程各占多少字节（合计）？

# %% id="exercise-bytes" tags=["exercise"]


def bytes_per_process(frozen, trained, processes, stage):
    return ...  # your code


print(bytes_per_process(1000, 10, 2, 3))  # 1080 once it is right

checks.check_bytes_per_process(bytes_per_process)

# %% [markdown] id="exercise-bytes-solution"
# <details><summary>Solution</summary>
#
# ```python
# def bytes_per_process(frozen, trained, processes, stage):
#     weights, gradients, state = 2 * frozen + 4 * trained, 4 * trained, 8 * trained
#     weights /= processes if stage >= 3 else 1
#     gradients /= processes if stage >= 2 else 1
#     state /= processes if stage >= 1 else 1
#     return weights + gradients + state
# ```
#
# </details>

# %% [markdown] id="exercise-bytes-solution" lang="zh" of="508c6893"
# <details><summary>参考答案</summary>
#
# ```python
# def bytes_per_process(frozen, trained, processes, stage):
#     weights, gradients, state = 2 * frozen + 4 * trained, 4 * trained, 8 * trained
#     weights /= processes if stage >= 3 else 1
#     gradients /= processes if stage >= 2 else 1
#     state /= processes if stage >= 1 else 1
#     return weights + gradients + state
# ```
#
# </details>

# %% [markdown] id="exercise-partial-why"
# **4.** Tensor parallel by hand: `down @ relu(up @ x)` for rows `x` (rows, in), `up` (hidden, in), `down` (out, hidden). Return one
# partial result (rows, out) per process, so that their sum is the whole; process i has the i-th piece of the hidden units.

# %% [markdown] id="exercise-partial-why" lang="zh" of="a926b44f"
# **4.** 手写张量并行：对 `x`（行数, in）的每一行计算 `down @ relu(up @ x)`，`up` 为（hidden, in），`down` 为（out, hidden）。为每个进程返回一个部分和（行数, out），相加等于完整结果；第 i 个进程持有隐藏单元的第 i 段。

# %% id="exercise-partial" tags=["exercise"]


def mlp_partial_sums(x, up, down, processes):
    return ...  # your code


print(mlp_partial_sums(torch.ones(1, 2), torch.eye(2), torch.tensor([[1.0, 2.0]]), 2))  # 1 and 2 once it is right

checks.check_mlp_partial_sums(mlp_partial_sums)

# %% [markdown] id="exercise-partial-solution"
# <details><summary>Solution</summary>
#
# ```python
# def mlp_partial_sums(x, up, down, processes):
#     pieces = zip(up.chunk(processes), down.chunk(processes, dim=1))
#     return [torch.relu(x @ rows.T) @ columns.T for rows, columns in pieces]
# ```
#
# </details>

# %% [markdown] id="exercise-partial-solution" lang="zh" of="6abbde4d"
# <details><summary>参考答案</summary>
#
# ```python
# def mlp_partial_sums(x, up, down, processes):
#     pieces = zip(up.chunk(processes), down.chunk(processes, dim=1))
#     return [torch.relu(x @ rows.T) @ columns.T for rows, columns in pieces]
# ```
#
# </details>

# %% [markdown] id="exercise-sampler-why"
# **5.** A sampler without shuffling: process `rank` takes every `processes`-th of `count` rows, and all take the same number: who
# runs out starts again from row 0, in turn. Return the list of row numbers.

# %% [markdown] id="exercise-sampler-why" lang="zh" of="55911060"
# **5.** 不打乱的采样器：第 `rank` 个进程每隔 `processes` 条取一条，共 `count` 条，每个进程取的条数相同：不够时按顺序从第 0 条重新取。返回行号列表。

# %% id="exercise-sampler" tags=["exercise"]


def sampler_rows(count, rank, processes):
    return ...  # your code


print(sampler_rows(7, 1, 2))  # 1, 3, 5, 0 once it is right

checks.check_sampler_rows(sampler_rows)

# %% [markdown] id="exercise-sampler-solution"
# <details><summary>Solution</summary>
#
# ```python
# def sampler_rows(count, rank, processes):
#     rounds = math.ceil(count / processes)
#     return [i % count for i in range(rank, rounds * processes, processes)]
# ```
#
# </details>

# %% [markdown] id="exercise-sampler-solution" lang="zh" of="3ce0e232"
# <details><summary>参考答案</summary>
#
# ```python
# def sampler_rows(count, rank, processes):
#     rounds = math.ceil(count / processes)
#     return [i % count for i in range(rank, rounds * processes, processes)]
# ```
#
# </details>

# %% [markdown] id="checkpoint-why"
# ## Check your results
# No process of this lesson may be left; then the outcomes.

# %% [markdown] id="checkpoint-why" lang="zh" of="d92d7896"
# ## 结果核对
# 先确认这一课没有留下任何进程，再核对结果。

# %% id="checkpoint"
here = [process.info for process in psutil.process_iter(["cmdline", "cwd"]) if process.info["cwd"] == os.getcwd()]
left_over = [info["cmdline"] for info in here if f"{folder}/" in " ".join(info["cmdline"] or [])]
print("processes left over:", len(left_over))
assert not left_over, left_over
outcomes = {
    **{f"{name}_loss_diff": of_losses for name, (of_losses, _) in differences.items()},
    **{f"{name}_gradient_diff": of_gradients for name, (_, of_gradients) in differences.items()},
    "own_start_distance": results["own_start"][1]["distance"],
    "prediction_error": prediction_error,
    "zero1_share": zero1_share,
    "fsdp2_share": sum(counted["fsdp2"][part] for part in parts) / total,
    "activations_fsdp2_to_ddp": alike,
    "weights_in_memory": in_memory,
    "moments_max_abs_diff": moments_max_abs_diff,
    "trap_exit_code": trapped["who.py"],
    "trap_exit_code_checked": trapped["who.py check"],
    "adapter_difference": adapter_difference,
}
bands = {name: (0, 1e-4) for name in outcomes if name.endswith("_diff")}
bands |= {
    "own_start_distance": (1e-2, 1),
    "prediction_error": (0, 0.1),
    "zero1_share": (0.7, 0.8),
    "fsdp2_share": (0.45, 0.55),
    "activations_fsdp2_to_ddp": (0.95, 1.05),
    "weights_in_memory": (0, 0.5),
    "moments_max_abs_diff": (0, 1e-6),
    "trap_exit_code": (0, 0),
    "trap_exit_code_checked": (1, 1),
    "adapter_difference": (0, 1e-2),
}
course.record(outcomes, bands if PROFILE == "cpu" else {})

# %% [markdown] id="next"
# **You keep** `runs/14_scale_out`: `two.py` and `train.py`, which any launcher starts, and the files for DeepSpeed,
# Slurm, Ray and Megatron-Bridge.
#
# **On your GPUs:** `"nccl"` instead of `"gloo"`, `torch.cuda.set_device(rank)`, the model moved there; the calls stay. Order of
# choice: LoRA on one GPU; DDP if that fits; FSDP2 or ZeRO-3 if it doesn't; tensor parallel inside a machine and a
# pipeline between machines for what is left.
#
# **The same from a recipe:** `torchrun --nproc-per-node 2 -m ftlab train recipes/sft_lora.yaml`.
#
# **Next:** the loss falls and the model is still wrong. Which of twelve faults is it? [15 · Clinic](15_clinic.ipynb)

# %% [markdown] id="next" lang="zh" of="0294e2b4"
# **你得到的文件：** `runs/14_scale_out`，里面有任何启动器都能启动的 `two.py` 和 `train.py`，以及给 DeepSpeed、Slurm、Ray 和 Megatron-Bridge 的文件。
#
# **在你的多卡机器上：** 把 `"gloo"` 换成 `"nccl"`，加上 `torch.cuda.set_device(rank)`，并把模型放到卡上，其余调用不变。选择的顺序：单卡 LoRA；放得下就用 DDP；放不下用 FSDP2 或 ZeRO-3；再不够，机器内用张量并行，机器之间用流水线。
#
# **用配方做同样的事：** `torchrun --nproc-per-node 2 -m ftlab train recipes/sft_lora.yaml`。
#
# **下一课：** 损失在降，模型却不对，是十二种毛病里的哪一种？[15 · 诊所](15_clinic.ipynb)
