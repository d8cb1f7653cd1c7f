"""Lesson 08's last cell uploads: against a hub on this machine, from which the model is then fetched."""

import subprocess
import sys

import jupytext
import pytest
from hub import fetched, local_hub, settings
from lessons import SOURCES

# What the lesson has by then: a merged model, its tokenizer, and a folder with the model card of the export.
BEFORE = """
import sys
from pathlib import Path
from huggingface_hub import upload_file
from transformers import AutoModelForCausalLM, AutoTokenizer
hub_id, folder = "me/merged", Path(sys.argv[2])
merged, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
"""


@pytest.mark.lengthy
def test_what_lesson_08_pushes_can_be_fetched(tiny_model_dir, tmp_path):
    lesson = jupytext.reads((SOURCES / "08_merge_export.py").read_text(encoding="utf-8"), fmt="py:percent")
    (cell,) = [cell.source for cell in lesson.cells if cell.metadata["id"] == "hub"]
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# merged\n")
    command = [sys.executable, "-c", BEFORE + cell, str(tiny_model_dir), str(tmp_path)]
    with local_hub({}) as hub:
        environment = settings(hub, tmp_path / "home") | {"HF_TOKEN": "hf_none"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        pushed = hub.repositories["me/merged"]
        assert pushed["README.md"] == (tmp_path / "exported" / "README.md").read_bytes()
        assert pushed["model.safetensors"] == (tiny_model_dir / "model.safetensors").read_bytes()
        again = fetched(hub, tmp_path / "other", "me/merged")
    assert again.returncode == 0 and "fetching me/merged" in again.stdout, again.stdout + again.stderr
