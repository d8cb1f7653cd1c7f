"""What the command line names: adapters by name, a recipe, the model's name, origins."""

import shutil

import httpx
import pytest
import serving
import torch
from peft import LoraConfig, get_peft_model
from test_serve_batch import ask, ids

from ftlab.apps import cli
from ftlab.apps.serve import loading, run, security
from ftlab.apps.serve.engine import Engine
from ftlab.apps.serve.service import Served
from ftlab.errors import LabError
from ftlab.runs import chat


@pytest.fixture(scope="module")
def adapters(tiny_model_dir, tmp_path_factory):
    """Return two adapter folders."""
    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("adapters") / f"a{seed}"
        torch.manual_seed(seed)
        model, _ = serving.load(tiny_model_dir)
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False, base_model_name_or_path="tiny")
        get_peft_model(model, config).save_pretrained(folder)
        made.append(str(folder))
    return made


def answered(model, tokenizer, name="default"):
    engine = Engine(model, tokenizer)
    (pieces,) = ask(engine, [[5, 6, 7]], adapter=name)
    engine.close()
    return ids(pieces)


def test_several_adapters_answer_under_their_names_in_one_process(tiny_model_dir, adapters):
    named = [f"one={adapters[0]}", f"two.b={adapters[1]}"]
    loaded = loading.load(str(tiny_model_dir), named)
    assert loaded.served == {
        tiny_model_dir.name: Served(None),
        "one": Served("default", []),
        "two.b": Served("adapter1", []),
    }
    engine = Engine(loaded.model, loaded.tokenizer)
    names = ["default", "adapter1", None]
    found = {name: ids(pieces) for name in names * 2 for pieces in ask(engine, [[5, 6, 7]], adapter=name)}
    engine.close()
    alone = [answered(*chat.load(str(tiny_model_dir), folder)) for folder in (*adapters, None)]
    assert list(found.values()) == alone and len({tuple(one) for one in alone}) == 3


def test_one_adapter_without_a_name_has_the_model_s(tiny_model_dir, adapters, monkeypatch):
    loaded = loading.load(str(tiny_model_dir), adapters[:1], name="mine")
    assert list(loaded.served) == ["mine", "mine-base"] and not loaded.defaults
    monkeypatch.setenv("API_MODEL_NAME", "theirs")
    assert list(loading.load(str(tiny_model_dir)).served) == ["theirs"]


@pytest.mark.parametrize("named", [["one={0}", "{1}"], ["one={0}", "one={1}"], ["tiny={0}"], ["{0}", "{1}"]])
def test_adapters_need_names_of_their_own(tiny_model_dir, adapters, named):
    with pytest.raises(LabError, match="NAME=DIR"):
        loading.load(str(tiny_model_dir), [one.format(*adapters) for one in named], name="tiny")


def test_adapters_with_another_tokenizer_or_on_another_kind_of_weights_are_refused(
    tiny_model_dir, adapters, tmp_path, monkeypatch
):
    _, tokenizer = serving.load(tiny_model_dir)
    other = tmp_path / "other"
    shutil.copytree(adapters[1], other)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(other)
    with pytest.raises(LabError, match="another chat template"):
        loading.load(str(tiny_model_dir), [f"one={adapters[0]}", f"two={other}"])
    (other / "tokenizer_config.json").unlink()
    (other / "adapter_config.json").write_text((other / "adapter_config.json").read_text().replace('"r": 8', '"r": 4'))
    with pytest.raises(LabError, match="cannot be served with the others"):
        loading.load(str(tiny_model_dir), [f"one={adapters[0]}", f"two={other}"])
    monkeypatch.setattr(chat, "switchable", lambda model: False)
    with pytest.raises(LabError, match="changes the base model"):
        loading.load(str(tiny_model_dir), [f"one={adapters[0]}"])
    with pytest.raises(LabError, match="changes the base model"):
        loading.add(serving.load(tiny_model_dir)[0], chat.saved_weights.weights_of(adapters[0]), "x")


def test_a_recipe_gives_model_adapter_and_sampling(tiny_model_dir, adapters, tmp_path):
    recipe = tmp_path / "serve.yaml"
    recipe.write_text(
        f"model_name_or_path: {tiny_model_dir}\nadapter_name_or_path: {adapters[0]}\ndefault_system: Arr.\n"
        "temperature: 0.3\ntop_k: 7\nmax_new_tokens: 5000\n"
    )
    loaded = loading.load(str(recipe))
    system = [{"role": "system", "content": "Arr."}]
    assert loaded.served == {tiny_model_dir.name: Served(system=system), f"{tiny_model_dir.name}-base": Served(None)}
    assert loaded.defaults == {"temperature": 0.3, "top_p": 0.7, "top_k": 7, "repetition_penalty": 1.0}
    assert (loaded.limits.default_tokens, loaded.limits.max_tokens) == (5000, 5000)
    greedy = loading.load(str(recipe), name="x", overrides=["do_sample=false", "max_new_tokens=9"])
    assert greedy.defaults == {"repetition_penalty": 1.0, "temperature": 0.0} and "x" in greedy.served
    assert (greedy.limits.default_tokens, greedy.limits.max_tokens) == (9, 2048)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.yaml", "--adapter", "x"], "is a recipe"),
        (["tiny", "temperature=0"], "only model_revision, cache_dir, trust_remote_code, hf_hub_token are read"),
        (["recipes/chat.yaml", "infer_backend=int8"], "infer_backend"),
        (["recipes/chat.yaml", "num_beams=2"], "beams"),
        (["tiny", "--allow-origin", "*"], "not an origin"),
        (["tiny", "--allow-origin", "https://app.example/path"], "not an origin"),
        (["tiny", "--allow-origin", "null"], "not an origin"),
    ],
)
def test_arguments_that_cannot_be_followed_are_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(run, "listen", lambda host, port: None)
    assert cli.main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_listed_origins_and_no_others_may_use_the_server(tiny_model_dir):
    origin = security.allowed_origin("https://app.example")
    ask_first = {"Origin": origin, "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    with serving.serving(*serving.load(tiny_model_dir), origins=frozenset({origin})) as server:
        allowed = httpx.options(server.url + serving.CHAT, headers=ask_first)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in allowed.headers
        refused = httpx.options(server.url + serving.CHAT, headers=ask_first | {"Origin": "https://evil.example"})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        models = server.http.get("/v1/models", headers={"Origin": origin})
        assert models.status_code == 200 and models.headers["access-control-allow-origin"] == origin
        other = server.http.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert other.status_code == 403 and "access-control-allow-origin" not in other.headers
        assert server.http.get("/v1/models", headers={"Origin": origin, "Authorization": ""}).status_code == 401
