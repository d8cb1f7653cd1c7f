"""Write facts_en and facts_en_eval: plain questions whose answer is a word or two, for rewards that a program can check.

A line of KINDS is a question with a gap, then gap=answer pairs; ONE holds single questions. None of them stands in
general_mcq, which measures what training forgets. The untouched smollm2-135m answers each of them right in a sentence of
its own, greedily and in 40 tokens (86 others that it got wrong were left out): a reward can only strengthen what is there.
    python data/make/facts.py
"""

import json
import random
from pathlib import Path

DATA = Path(__file__).parents[1]
HELD_OUT = 40

KINDS = """
What is the capital of {}?|Norway=Oslo|Sweden=Stockholm|Poland=Warsaw|Hungary=Budapest|Austria=Vienna|Ireland=Dublin|Cuba=Havana|Peru=Lima|Chile=Santiago|Canada=Ottawa|Kenya=Nairobi|Iran=Tehran|Iraq=Baghdad|India=New Delhi|Thailand=Bangkok|South Korea=Seoul|Australia=Canberra|Romania=Bucharest|Bulgaria=Sofia
On which continent is {}?|Nigeria=Africa|Egypt=Africa|Ghana=Africa|Morocco=Africa|Ethiopia=Africa|Spain=Europe|Thailand=Asia|Japan=Asia|Vietnam=Asia|Chile=South America|Peru=South America|Argentina=South America|Colombia=South America|Canada=North America
What is the opposite of {}?|left=right|early=late|hard=soft|high=low|long=short|heavy=light|strong=weak|near=far|thick=thin|wide=narrow|deep=shallow|inside=outside|love=hate|war=peace
What colour is {}?|a ripe tomato=red|a raven=black
Which language is spoken in {}?|Portugal=Portuguese|Austria=German|Mexico=Spanish|Argentina=Spanish|Italy=Italian|Japan=Japanese|Poland=Polish|Greece=Greek|Russia=Russian|Sweden=Swedish|Hungary=Hungarian|Turkey=Turkish|Egypt=Arabic|Thailand=Thai|Finland=Finnish
What is the currency of {}?|Japan=yen|India=rupee|the United Kingdom=pound|the United States=dollar|Russia=ruble|Mexico=peso|Germany=euro|Switzerland=franc|Brazil=real|Australia=dollar|Canada=dollar
Which month comes after {}?|July=August|November=December
Who wrote {}?|"Hamlet"=Shakespeare|"King Lear"=Shakespeare|"Macbeth"=Shakespeare|"Pride and Prejudice"=Austen|"The Odyssey"=Homer|"1984"=Orwell|"Harry Potter"=Rowling|"The Lord of the Rings"=Tolkien|"Faust"=Goethe
In which country is {}?|the city of Venice=Italy|the city of Barcelona=Spain|the city of Munich=Germany|the city of Kyoto=Japan|the city of Chicago=United States|the city of Toronto=Canada|the city of Sydney=Australia|the city of Shanghai=China|the city of Manchester=England|the Taj Mahal=India|the Colosseum=Italy|Machu Picchu=Peru|Mount Fuji=Japan|the Acropolis=Greece|Petra=Jordan|the Kremlin=Russia
What is the chemical symbol of {}?|hydrogen=H|iron=Fe|silver=Ag|sodium=Na
Which country is famous for {}?|pizza=Italy|sushi=Japan|tacos=Mexico|the samba=Brazil|flamenco=Spain|Swiss watches=Switzerland|the Great Barrier Reef=Australia|the Eiffel Tower=France
"""
ONE = """
Which planet is the largest?|Jupiter
Which planet has the best-known rings?|Saturn
Which gas do we need to breathe?|oxygen
What is the largest animal on Earth?|whale
Which animal makes honey?|bee
What do bees collect from flowers?|nectar
How many sides does a hexagon have?|six
What is the longest river in South America?|Amazon
Which is the largest desert in Africa?|Sahara
Which ocean lies between Europe and America?|Atlantic
Which sea lies between Europe and Africa?|Mediterranean
Which organ do we breathe with?|lungs
What is the centre of an atom called?|nucleus
What do we call molten rock that leaves a volcano?|lava
What is the science of living things called?|biology
What is the study of numbers called?|mathematics
Who painted the Mona Lisa?|Leonardo
Who discovered penicillin?|Fleming
Who was the first person to walk on the Moon?|Armstrong
Who invented the telephone?|Bell
Who was the first emperor of Rome?|Augustus
In which year did the Second World War end?|1945
In which year did the First World War begin?|1914
In which city is the Statue of Liberty?|New York
In which city is Big Ben?|London
In which city is the Brandenburg Gate?|Berlin
What is the main ingredient of an omelette?|eggs
What is tofu made from?|soybeans
What instrument has 88 keys?|piano
What is the first month of the year?|January
What is the first letter of the Greek alphabet?|alpha
What is two plus two?|four
Which day comes after Saturday?|Sunday
"""


def questions() -> list[tuple[str, str]]:
    """Return every question with its answer."""
    found = [(line.split("|")[0], line.split("|")[1]) for line in ONE.strip().splitlines()]
    for line in KINDS.strip().splitlines():
        pattern, *pairs = line.split("|")
        found += [(pattern.format(gap), answer) for gap, answer in (pair.rsplit("=", 1) for pair in pairs)]
    return found


def write(name: str, rows: list[tuple[str, str]]) -> None:
    """Write rows as alpaca, one JSON object per line."""
    lines = [json.dumps({"instruction": question, "output": answer}, ensure_ascii=False) for question, answer in rows]
    (DATA / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    rows = questions()
    random.Random(0).shuffle(rows)
    write("facts_en_eval", rows[:HELD_OUT])
    write("facts_en", rows[HELD_OUT:])
