"""Write general_freeform_en: general questions that are asked before and after training, graded by what an answer contains.

A line of QUESTIONS is a question and the answers that count as right, each as whole words. They are kept apart from
what SFT recipes train on. The untouched smollm2-135m answers 18 to 20 right, greedily, in float32 and in bfloat16; 12
others were left out, because what it doesn't know it cannot forget.
    python data/make/general_freeform.py
"""

import json
from pathlib import Path

DATA = Path(__file__).parents[1]

QUESTIONS = """
What is the capital of France?|Paris
What is 2 + 2?|4|four
What color is the sky on a sunny day?|blue
How many days are there in a week?|7|seven
Who wrote Romeo and Juliet?|Shakespeare
Which planet is called the Red Planet?|Mars
What is the opposite of hot?|cold
Which ocean is the largest?|Pacific
In which country is the Great Wall?|China
How many legs does a spider have?|8|eight
At what temperature does water boil, in degrees Celsius?|100
What is the tallest mountain in the world?|Everest
Which organ pumps blood through the body?|heart
How do you say "hello" in Spanish?|hola
What is the plural of "child"?|children
What is the chemical symbol of gold?|Au
What is the capital of Italy?|Rome
How many hours are there in a day?|24
Which gas do plants take in?|carbon dioxide
Who developed the theory of relativity?|Einstein
"""


def rows() -> list[dict]:
    """Return alpaca rows; `expect` lists the answers that count as right."""
    lines = [line.split("|") for line in QUESTIONS.strip().splitlines()]
    return [{"instruction": question, "input": "", "output": right[0], "expect": right} for question, *right in lines]


if __name__ == "__main__":
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    (DATA / "general_freeform_en.jsonl").write_text(text, encoding="utf-8")
