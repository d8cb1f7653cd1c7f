"""The models the field teaches with: where each lives, how big it is, what it speaks, where LoRA goes."""

from dataclasses import dataclass

from ftlab.memory import Decoder

LLAMA_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NEOX_LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
BLOOM_LINEAR = NEOX_LINEAR
BAICHUAN_LINEAR = ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj")
GLM_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Model:
    """One catalogue entry.

    Attributes:
        name: the short name `ftlab.models.fetch` takes.
        hub_id: Hugging Face id. modelscope_id: ModelScope id.
        parameters: weights in the model, a count.
        licence: as its publisher names it.
        template: chat template family; "none" for a base model.
        target_modules: the linear layers LoRA adapts.
        sizes: of its layers, as its config.json has them.
    """

    name: str
    hub_id: str
    modelscope_id: str
    parameters: int
    licence: str
    template: str
    target_modules: tuple[str, ...]
    sizes: Decoder


# fmt: off
MODELS = (
    Model("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct",
          134_515_008, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(30, 576, 9, 3, 64, 1536, 49152, True)),
    Model("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-360M-Instruct",
          361_821_120, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(32, 960, 15, 5, 64, 2560, 49152, True)),
    Model("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "HuggingFaceTB/SmolLM2-1.7B-Instruct",
          1_711_376_384, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(24, 2048, 32, 32, 64, 8192, 49152, True)),
    Model("qwen2-7b", "Qwen/Qwen2-7B-Instruct", "Qwen/Qwen2-7B-Instruct",
          7_615_616_512, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(28, 3584, 28, 4, 128, 18944, 152064, False, family="qwen2")),
    Model("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct",
          494_032_768, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(24, 896, 14, 2, 64, 4864, 151936, True, family="qwen2")),
    Model("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct",
          1_543_714_304, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(28, 1536, 12, 2, 128, 8960, 151936, True, family="qwen2")),
    Model("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct",
          7_615_616_512, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(28, 3584, 28, 4, 128, 18944, 152064, False, family="qwen2")),
    Model("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B",
          596_049_920, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(28, 1024, 16, 8, 128, 3072, 151936, True, family="qwen3")),
    Model("qwen3-4b", "Qwen/Qwen3-4B", "Qwen/Qwen3-4B",
          4_022_468_096, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(36, 2560, 32, 8, 128, 9728, 151936, True, family="qwen3")),
    Model("qwen3-8b", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B",
          8_190_735_360, "Apache-2.0", "chatml", LLAMA_LINEAR,
          Decoder(36, 4096, 32, 8, 128, 12288, 151936, False, family="qwen3")),
    Model("llama3-8b", "meta-llama/Meta-Llama-3-8B-Instruct", "LLM-Research/Meta-Llama-3-8B-Instruct",
          8_030_261_248, "Llama 3 Community", "llama3", LLAMA_LINEAR,
          Decoder(32, 4096, 32, 8, 128, 14336, 128256, False)),
    Model("llama3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "LLM-Research/Meta-Llama-3.1-8B-Instruct",
          8_030_261_248, "Llama 3.1 Community", "llama3", LLAMA_LINEAR,
          Decoder(32, 4096, 32, 8, 128, 14336, 128256, False)),
    Model("llama3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "LLM-Research/Llama-3.2-1B-Instruct",
          1_235_814_400, "Llama 3.2 Community", "llama3", LLAMA_LINEAR,
          Decoder(16, 2048, 32, 8, 64, 8192, 128256, True)),
    Model("llama3.2-3b", "meta-llama/Llama-3.2-3B-Instruct", "LLM-Research/Llama-3.2-3B-Instruct",
          3_212_749_824, "Llama 3.2 Community", "llama3", LLAMA_LINEAR,
          Decoder(28, 3072, 24, 8, 128, 8192, 128256, True)),
    Model("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "LLM-Research/Mistral-7B-Instruct-v0.3",
          7_248_023_552, "Apache-2.0", "mistral", LLAMA_LINEAR,
          Decoder(32, 4096, 32, 8, 128, 14336, 32768, False, family="mistral")),
    Model("glm4-9b", "zai-org/glm-4-9b-chat-hf", "ZhipuAI/glm-4-9b-chat-hf",
          9_399_951_360, "GLM-4", "glm4", GLM_LINEAR,
          Decoder(40, 4096, 32, 2, 128, 13696, 151552, False, family="glm")),
    Model("baichuan2-7b", "baichuan-inc/Baichuan2-7B-Chat", "baichuan-inc/Baichuan2-7B-Chat",
          7_505_973_248, "Baichuan 2 Community", "baichuan2", BAICHUAN_LINEAR,
          Decoder(32, 4096, 32, 32, 128, 11008, 125696, False, family="baichuan")),
    Model("bloomz-560m", "bigscience/bloomz-560m", "AI-ModelScope/bloomz-560m",
          559_214_592, "BigScience RAIL 1.0", "none", BLOOM_LINEAR,
          Decoder(24, 1024, 16, 16, 64, 4096, 250880, True, 2, family="bloom")),
    Model("bloom-7b1", "bigscience/bloom-7b1", "AI-ModelScope/bloom-7b1",
          7_069_016_064, "BigScience RAIL 1.0", "none", BLOOM_LINEAR,
          Decoder(30, 4096, 32, 32, 128, 16384, 250880, True, 2, family="bloom")),
    Model("pythia-160m", "EleutherAI/pythia-160m", "EleutherAI/pythia-160m",
          162_322_944, "Apache-2.0", "none", NEOX_LINEAR,
          Decoder(12, 768, 12, 12, 64, 3072, 50304, False, 2, family="gpt_neox")),
    Model("pythia-1b", "EleutherAI/pythia-1b", "EleutherAI/pythia-1b",
          1_011_781_632, "Apache-2.0", "none", NEOX_LINEAR,
          Decoder(16, 2048, 8, 8, 256, 8192, 50304, False, 2, family="gpt_neox")),
    Model("olmo2-1b", "allenai/OLMo-2-0425-1B-Instruct", "allenai/OLMo-2-0425-1B-Instruct",
          1_484_916_736, "Apache-2.0", "olmo", LLAMA_LINEAR,
          Decoder(16, 2048, 16, 16, 128, 8192, 100352, False, family="olmo2")),
    Model("olmo2-7b", "allenai/OLMo-2-1124-7B-Instruct", "allenai/OLMo-2-1124-7B-Instruct",
          7_298_617_344, "Apache-2.0", "olmo", LLAMA_LINEAR,
          Decoder(32, 4096, 32, 32, 128, 11008, 100352, False, family="olmo2")),
    Model("olmoe-1b-7b", "allenai/OLMoE-1B-7B-0125-Instruct", "allenai/OLMoE-1B-7B-0125-Instruct",
          6_919_161_856, "Apache-2.0", "olmo", LLAMA_LINEAR,
          Decoder(16, 2048, 16, 16, 128, 1024, 50304, False, 3, 64, 8, family="olmoe")),
    Model("mixtral-8x7b", "mistralai/Mixtral-8x7B-Instruct-v0.1", "AI-ModelScope/Mixtral-8x7B-Instruct-v0.1",
          46_702_792_704, "Apache-2.0", "mistral", LLAMA_LINEAR,
          Decoder(32, 4096, 32, 8, 128, 14336, 32000, False, 3, 8, 2, family="mixtral")),
    Model("gemma2-2b", "google/gemma-2-2b-it", "LLM-Research/gemma-2-2b-it",
          2_614_341_888, "Gemma", "gemma", LLAMA_LINEAR,
          Decoder(26, 2304, 8, 4, 256, 9216, 256000, True, family="gemma2")),
)
# fmt: on


def hub_id(name: str) -> str:
    """Return the Hugging Face id of a catalogue name; any other name unchanged.

    >>> hub_id("smollm2-135m"), hub_id("my/model")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'my/model')
    """
    return next((model.hub_id for model in MODELS if model.name == name), name)
