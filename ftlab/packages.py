"""Optional packages: what to install for a missing module, and which recipe keys need one."""

from importlib.util import find_spec
from typing import Any

from ftlab.errors import LabError, fail, say

# Extras of pyproject.toml -> the modules they install.
EXTRAS = {
    "course": ("jupyterlab", "ipykernel", "ipywidgets", "IPython", "jupytext", "papermill", "voila", "nbformat",
               "nbclient", "nbconvert", "jupyter_client"),
    "gpu": ("bitsandbytes",),
    "serve": ("fastapi", "uvicorn", "starlette", "openai", "llguidance", "prometheus_client"),
    "metrics": ("sacrebleu", "rouge_score", "jieba"),
    "benchmarks": ("lm_eval",),
    "llamacpp": ("llama_cpp",),
    "gguf": ("xllamacpp",),
    "deepspeed": ("deepspeed",),
    "ray": ("ray",),
    "optim": ("galore_torch", "apollo_torch", "lomo_optim", "schedulefree"),
}  # fmt: skip
# Other modules -> their packages. No other name is suggested to pip.
PACKAGES = {
    "wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "trackio": "trackio",
    "clearml": "clearml", "codecarbon": "codecarbon", "dagshub": "dagshub", "dvclive": "dvclive", "neptune": "neptune",
    "torchao": "torchao", "grokadamw": "grokadamw",
    "torch_xla": "torch_xla", "torch_npu": "torch-npu", "modelscope": "modelscope", "tiktoken": "tiktoken",
    "sentencepiece": "sentencepiece", "einops": "einops", "kernels": "kernels", "matplotlib": "matplotlib",
    "psutil": "psutil", "gguf": "gguf", "pyarrow": "pyarrow", "openpyxl": "openpyxl",
    "optimi": "torch-optimi", "torchdistx": "git+https://github.com/pytorch/torchdistx", "flash_attn": "flash-attn",
    "flash_attn_interface": "flash-attn-3", "liger_kernel": "liger-kernel", "comet_ml": "comet-ml",
    "azureml": "azureml-core", "flytekit": "flytekit flytekitplugins-deck-standard", "google.protobuf": "protobuf",
    "sklearn": "scikit-learn", "yaml": "PyYAML",
    # 7.7 needs a newer torch than the pinned one. It brings an older numpy, so that constraints.txt doesn't have it.
    "gptqmodel": "gptqmodel==7.6.0 optimum", "optimum": "gptqmodel==7.6.0 optimum", "aqlm": "aqlm==1.1.7",
}  # fmt: skip
# Prefixes of `optim` -> the module they need; all others are part of torch or transformers.
OPTIMIZERS = {
    "galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "adalomo": "lomo_optim",
    "grokadamw": "grokadamw", "schedule_free": "schedulefree", "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao", "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu", "adamw_anyprecision": "torchdistx", "adamw_bnb": "bitsandbytes",
    "adamw_8bit": "bitsandbytes", "ademamix": "bitsandbytes", "lion": "bitsandbytes", "paged": "bitsandbytes",
    "rmsprop_bnb": "bitsandbytes",
}  # fmt: skip
# `report_to` -> its module.
TRACKERS = {
    "azure_ml": "azureml", "clearml": "clearml", "codecarbon": "codecarbon", "comet_ml": "comet_ml",
    "dagshub": "dagshub", "dvclive": "dvclive", "flyte": "flytekit", "mlflow": "mlflow", "neptune": "neptune",
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb",
}  # fmt: skip
ATTENTION = {"fa2": "flash_attn", "fa3": "flash_attn_interface"}


def install(module: str) -> str:
    """Return the command that installs a module, or a sentence if its package is unknown.

    >>> install("voila"), install("sklearn")
    ("pip install 'ftlab[course]'", 'pip install scikit-learn')
    """
    top = module.partition(".")[0]
    extra = next((f"'ftlab[{name}]'" for name, modules in EXTRAS.items() if top in modules), None)
    package = extra or PACKAGES.get(module) or PACKAGES.get(top)
    return f"pip install {package}" if package else say("package_unknown", module=top)


def missing(module: str, where: str = "") -> LabError:
    """Build the error for a module that is not installed."""
    return fail("package_missing", where=where, package=module.partition(".")[0], install=install(module))


def require(module: str, where: str = "") -> None:
    """Raise an error if a module is missing.

    Args:
        where: the key, or the option, that needs it.
    Raises:
        LabError: it is not installed; the command that installs it is named.
    """
    if find_spec(module) is None:
        raise missing(module, where)


def of_recipe(recipe: Any) -> list[tuple[str, str]]:
    """Return (key, module) for every optional module that training a recipe needs."""
    fields = recipe.training
    optim = str(fields.get("optim", ""))
    modules = [("optim", module) for start, module in OPTIMIZERS.items() if optim.startswith(start)]
    trackers = fields.get("report_to") or []
    for name in [trackers] if isinstance(trackers, str) else trackers:
        # transformers refuses any other name; suggesting it to pip could install anything.
        modules += [("report_to", TRACKERS[name])] if name in TRACKERS else []
    if recipe.quantization_bit:
        modules.append(("quantization_bit", "bitsandbytes"))
    if recipe.flash_attn in ATTENTION:
        modules.append(("flash_attn", ATTENTION[recipe.flash_attn]))
    modules += [("use_liger_kernel", "liger_kernel")] if fields.get("use_liger_kernel") else []
    modules += [("deepspeed", "deepspeed")] if fields.get("deepspeed") else []
    modules += [("use_ray", "ray")] if recipe.use_ray else []
    return modules


def require_for(recipe: Any) -> None:
    """Refuse a recipe that needs an optional module which is not installed.

    Raises:
        LabError: naming the key, the package and the command that installs it.
    """
    for key, module in of_recipe(recipe):
        other = module == "tensorboard" and find_spec("tensorboardX")
        if find_spec(module) is None and not other:
            raise fail("package_missing_key", where=key, package=module, install=install(module))
