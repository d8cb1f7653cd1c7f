"""Words that the field does not use stay out of what people read: messages, docs, docstrings, comments, lessons."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("data/quiz_*.json")]
TABLES = [ROOT / "ftlab" / name for name in ("messages.toml", "recipe/meanings_zh.toml", "apps/board/words.toml")]
RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))
MODULES = sorted([*ROOT.glob("ftlab/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
LESSONS = sorted(ROOT.glob("notebooks/source/*.py"))

# What is written -> what to write instead.
ENGLISH = {
    r"\bshall\b": "should, will, must",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"(?<![Tt]here )\b(is|are|be|was|were) no (?!longer\b|more\b|other\b)\w+": "is not a ...",
    r"\bthat (is|are) none\b": "invalid ...",
    r"\bSay (whether|where|why|what|how|which)\b": "Return True if ..., Show ...",
    r"\bneeds not\b": "need not",
    r"\bas it comes\b": "defaults",
    r"\b(?<!`)knobs?\b(?![`=:\"])": "hyperparameter, setting, control",
    r"\bthin(ner)? (matri|product|adapter|ones)": "low-rank",
    r"\b(graphics|CUDA|smallest|one|GB|class) cards?\b|\bon a card\b": "GPU",
    r"\bone behind the other\b": "packed",
    r"\bhow surprised\b|\bsurprise at\b": "loss per token",
    r"\bBaseline first\b": "Start with a baseline",
    r"\bBreak it\b": "What goes wrong",
    r"^# ## Checkpoint": "Check your results",
    r"\bHence the\b": "therefore",
    r"\bNUL byte stands\b|\bstands there\b": "contains, duplicate",
    r"\blast words\b": "last output",
    r"\bsome (hundred|thousand|\d+)\b": "about",
}
CHINESE = {
    "旋钮": "超参数、参数",
    "弄坏": "故意出错",
    "聊天模板": "对话模板",
    r"(?<!token（)词元": "token（首次写 token（词元））",
    "令牌": "API key",
    "补齐": "填充",
    "[四八]位(?!数)": "4 比特、8 比特",
    "## 检查点": "结果核对",
    r"两个动量|动量各": "一阶矩、二阶矩",
    "意外程度|有多意外": "损失",
    "打的赌": "假设",
    "训练过猛": "学习率过大",
    "柱上的线段": "误差线",
    "同伴": "同一批里的其他提示",
    "奈特": "nat",
    "亲戚": "变体",
    r"(?<!偏好)(?<!成)对子": "偏好对",
    "先猜|运行之前先预测": "先预测，再运行",
    "虚构的 token": "虚拟 token",
    "含糊不清地说话": "换了模板会答非所问",
    r"\*\*代价": "耗时与内存",
}
# file -> words that are right there, and why.
ALLOWED: dict[str, dict[str, str]] = {}


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of what a person reads: all of a page, comments and strings of Python."""
    text = path.read_text(encoding="utf-8")
    if path in LESSONS:
        yield from prose(text)
    elif path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
                yield from enumerate(token.string.splitlines(), token.start[0])
    else:
        yield from enumerate(text.splitlines(), 1)


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of a lesson's Markdown cells."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("# %%"):
            inside = "[markdown]" in line
        elif inside:
            yield number, line


def hits(path: Path) -> list[str]:
    """Return "file:line: what is written -> what to write" of a file."""
    name = path.relative_to(ROOT).as_posix()
    return [
        f"{name}:{number}: {match[0]!r} -> {better}"
        for number, line in lines_of(path)
        for pattern, better in (ENGLISH | CHINESE).items()
        for match in [re.search(pattern, line)]
        if match and match[0] not in ALLOWED.get(name, ())
    ]


@pytest.mark.parametrize("path", [*PAGES, *TABLES, *RECIPES, *MODULES, *LESSONS], ids=lambda path: path.name)
def test_the_field_s_words_are_used(path):
    found = hits(path)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line", ["we recommend it", "it is no longer there", "amend", "TrainPanel(knobs=[])", "成对子集"]
)
def test_words_that_only_look_alike_are_left_alone(line):
    assert not any(re.search(pattern, line) for pattern in ENGLISH | CHINESE)


@pytest.mark.parametrize(
    "line", ["You shall mend it.", "`x` is no port", "Say whether it fits.", "转动旋钮", "四位基座"]
)
def test_words_that_the_field_does_not_use_are_found(line):
    assert any(re.search(pattern, line) for pattern in ENGLISH | CHINESE)
