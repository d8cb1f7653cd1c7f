"""Write general_en: general prompts with the embedded model's own answers, to mix into a fine-tune so that it forgets less.

Training on what the model would say anyway holds it in place (self-distilled replay). A line of PROMPTS may name what a
right answer contains; answers without it, unfinished ones and those that speak of the model itself are left out.
Needs the embedded model and three minutes on two cores; float32, in which processors agree most often on the likeliest
token. Another model needs its own answers:
    python data/make/general.py [MODEL FILE]
"""

import json
import re
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

DATA = Path(__file__).parents[1]
# What an assistant says of itself is another data set's subject.
OF_ITSELF = re.compile(r"\b(AI|chatbot|assistant|SmolLM|Hugging Face|language model|I'm not|I am not|I don't)\b")
MAX_NEW_TOKENS = 64  # replay rows should not be much longer than the rows they are mixed with

# A question with a gap, then what fills it; after "=", what the answer contains.
KINDS = """
What is the capital of {}?|Denmark=Copenhagen|Portugal=Lisbon|Finland=Helsinki|Belgium=Brussels|the Netherlands=Amsterdam|Turkey=Ankara|Mexico=Mexico City|Argentina=Buenos Aires|Colombia=Bogot|Vietnam=Hanoi|Indonesia=Jakarta|Nepal=Kathmandu|Ukraine=Kyiv|Croatia=Zagreb|Switzerland=Bern|Scotland=Edinburgh|Morocco=Rabat|Pakistan=Islamabad|Jordan=Amman|Lebanon=Beirut|Syria=Damascus|Saudi Arabia=Riyadh|Afghanistan=Kabul|Bangladesh=Dhaka|Malaysia=Kuala Lumpur|the Philippines=Manila|Serbia=Belgrade|Slovakia=Bratislava|Slovenia=Ljubljana|Estonia=Tallinn|Latvia=Riga|Lithuania=Vilnius|Iceland=Reykjavik|Algeria=Algiers|Tunisia=Tunis|Senegal=Dakar|Uganda=Kampala|New Zealand=Wellington|Ecuador=Quito|Uruguay=Montevideo|Jamaica=Kingston|Venezuela=Caracas|Bolivia=La Paz|Malta=Valletta
What language do people in {} speak?|Spain=Spanish|the Netherlands=Dutch|Norway=Norwegian|Denmark=Danish|China=Chinese|Korea=Korean|Iceland=Icelandic|Ukraine=Ukrainian|Iran=Persian|Vietnam=Vietnamese
What is the chemical symbol of {}?|carbon=C|helium=He|calcium=Ca|zinc=Zn|lead=Pb|nitrogen=N|copper=Cu|chlorine=Cl|neon=Ne|lithium=Li
What color is {}?|a carrot=orange|a cucumber=green|chocolate=brown|an elephant=gray|milk=white|a polar bear=white|a sunflower=yellow|the ocean=blue
Which company makes {}?|the iPhone=Apple|Windows=Microsoft|the PlayStation=Sony|the Mustang=Ford|the Galaxy phone=Samsung|Photoshop=Adobe|Lego bricks=Lego|the 747=Boeing
What is {} famous for?|Isaac Newton=gravity|Marie Curie|Mozart|Napoleon|Cleopatra|Galileo|Charles Darwin=evolution|Beethoven|Vincent van Gogh|Thomas Edison|Ada Lovelace|Alan Turing|Nelson Mandela|Florence Nightingale
Who {}?|wrote Don Quixote=Cervantes|painted The Starry Night=Gogh|composed The Magic Flute=Mozart|wrote War and Peace=Tolstoy|invented the light bulb=Edison|founded Microsoft=Gates|founded Apple=Jobs|made the first airplane=Wright|discovered radium=Curie|wrote Oliver Twist=Dickens|sailed to America in 1492=Columbus|built the pyramids of Giza=Egypt|was Julius Caesar|was Joan of Arc|is the author of The Hobbit=Tolkien|trained Alexander the Great=Aristotle
Explain in one sentence {}.|why the sky looks blue|how a refrigerator works|why we sleep|what gravity is|what an echo is|how a rainbow forms|what electricity is|why leaves fall in autumn|what an engine does|what a magnet is|how a plane stays in the air|why the sea is salty|what a vaccine does|what evolution means|what democracy means|why cats purr|why we need water|what a map is for|what a compass does|why people travel|what recycling is|why birds migrate|what a budget is
What is {}, in one sentence?|an algorithm|a computer program|a search engine|a language|a poem|a novel|a company|a laboratory|a teacher|a recipe|a bank|a volcano|a glacier|a desert|an island|a museum|an orchestra|photosynthesis|friendship|a black hole|an atom|a hospital|a tradition|a dictionary entry|a keyboard|a wedding|a holiday|gardening|painting|chess
Name three {}.|fruits|vegetables|colors|animals that live in Africa|countries in Europe|musical instruments|sports played with a ball|things in a kitchen|planets|rivers|kinds of weather|trees|hobbies|metals|board games|birds|school subjects|desserts|animals on a farm|cities in Europe|languages|drinks|seasons|oceans|pets|flowers|means of transport|parts of the body|famous painters
Give one tip for {}.|sleeping better|learning a language|saving money|cooking rice|staying healthy|writing a letter|studying for an exam|growing tomatoes|packing a suitcase|speaking in public|staying calm|making new friends|keeping a desk tidy|riding a bicycle safely
What is the plural of "{}"?|dog=dogs|box=boxes|city=cities|foot=feet|leaf=leaves|tooth=teeth|baby=babies|woman=women
What is the past tense of "{}"?|walk=walked|see=saw|eat=ate|write=wrote|run=ran|make=made|think=thought|buy=bought
What is the opposite of "{}"?|empty=full|rich=poor|young=old|easy=difficult|noisy=quiet|clean=dirty|first=last|above=below|win=lose|buy=sell
How do you say "{}" in French?|thank you=merci|good morning=bonjour|yes=oui|please=plaît|water=eau
How do you say "{}" in Spanish?|thank you=gracias|friend=amigo|house=casa|good night=noches|water=agua
Where do {} live?|penguins|camels|polar bears|dolphins|pandas|monkeys|lions|frogs
Where does {} come from?|coffee|silk|chocolate|rubber|paper|rain|salt|wool
What do {} do?|firefighters|doctors|bakers|farmers|pilots|librarians|carpenters|teachers|lawyers
Rewrite this more politely: {}|Be quiet.|Send it today.|Move your car.|Come here.|Tell me the price.
Rewrite this in the past tense: {}|She walks to school.=walked|They play football.=played|He opens the door.=opened|We eat lunch at noon.=ate|The dog runs home.=ran|I like the song.=liked|The bird sings.=sang|We wait for the bus.=waited
Correct the spelling: {}|I hav a dog.=I have a dog|She is my freind.=friend|We went to teh store.=the store|It was a beautifull day.=beautiful|He is comming home.=coming|Thier house is big.=Their|I recieve many letters.=receive
Is {}?|a tomato a fruit=fruit|the Sun a star=star|gold a metal=metal|a triangle a shape=shape
Write a short sentence about {}.|the sea|winter|a cat|music|a garden|breakfast|a long journey|a library|the night sky|an old house|spring flowers|a busy market|the mountains|a train|a good friend|rain|a river|coffee
"""
ONE = """
Hello!
Hi there, how are you?
Good evening!
Thank you very much!
I had a long day.
I am bored. What could I do?
Can you help me with my homework?
Tell me something interesting.
What should I cook for dinner?
What should I wear in the rain?
What is a good name for a cat?
What is a good name for a boat?
What is a common first name in England?
I am looking for a book to read.
Wish me luck for my exam.
Recommend a hobby.
Who is the king in chess?
Whom should I call if there is a fire?
What do people call a doctor for animals?|veterinarian
What is a person who writes books called?|author
Who works at a laboratory?
Are dogs good pets?
Are you allowed to park on a sidewalk?
Do you need a passport to travel abroad?
What kind of animal is a shark?|fish
What kind of instrument is a drum?|percussion
What type of food is spaghetti?|pasta
What exactly is a hurricane warning?
Describe a forest in one sentence.
Describe a rainy day in one sentence.
Introduce the topic of climate change in one sentence.
Write a short birthday wish.
Write a short slogan for a bakery.
Write one line of a poem about the moon.
Sort these from small to large: 7, 3, 9.|3, 7, 9
What is the largest country in the world by area?|Russia
What is the smallest prime number?|2
What is the square root of 16?|4
What is the longest river in Africa?|Nile
What is the fastest land animal?|cheetah
How many continents are there?|seven
How many strings does a violin have?|four
How many players are in a soccer team?|11
How many cents are in a dollar?|100
How many minutes are in two hours?|120
Which metal is liquid at room temperature?|mercury
Which planet is closest to the Sun?|Mercury
Which vitamin do we get from sunlight?|D
What is the main language of Austria?|German
What is the main language of Canada?|English
What is the main ingredient of bread?|flour
"""
SUMS = {"What is {} + {}?": (range(6, 12), range(6, 12)), "What is {} plus {}?": (range(4, 12, 3), range(4, 12, 3))}


def prompts() -> dict[str, str]:
    """Return every prompt with what its answer must contain ("" for anything)."""
    found = {}
    for line in KINDS.strip().splitlines():
        pattern, *gaps = line.split("|")
        found |= {pattern.replace("{}", gap.split("=")[0]): gap.partition("=")[2] for gap in gaps}
    found |= {line.partition("|")[0]: line.partition("|")[2] for line in ONE.strip().splitlines()}
    for pattern, numbers in SUMS.items():
        found |= {pattern.format(a, b): str(a + b) for a, b in product(*numbers)}
    return found


def answers(model_name: str, asked: list[str]) -> list[tuple[str, bool]]:
    """Return a model's greedy answer to each prompt, and whether it ended within MAX_NEW_TOKENS."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ftlab import evaluate, models

    path = models.fetch(model_name)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    chats = [[{"role": "user", "content": prompt}] for prompt in asked]
    texts = evaluate.generate_answers(model, tokenizer, chats, max_new_tokens=MAX_NEW_TOKENS)
    return [(text, len(tokenizer(text).input_ids) < MAX_NEW_TOKENS) for text in texts]


def is_kept(answer: str, expected: str) -> bool:
    """Return True for an answer that holds what is expected, doesn't repeat itself or speak of the model or of nothing."""
    from ftlab import evaluate

    words = answer.casefold().split()
    repeats = len(words) > 8 and len(set(words)) < 0.6 * len(words)
    right = not expected or evaluate.has_answer(answer, expected)
    return bool(words) and right and not repeats and not OF_ITSELF.search(answer)


if __name__ == "__main__":
    model_name, file = sys.argv[1:] or ("smollm2-135m", DATA / "general_en.jsonl")
    chosen = prompts()
    replies = zip(chosen.items(), answers(model_name, list(chosen)), strict=True)
    rows = [
        {"instruction": prompt, "input": "", "output": answer}
        for (prompt, expected), (answer, ended) in replies
        if ended and is_kept(answer, expected)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(file).write_text(text, encoding="utf-8")
