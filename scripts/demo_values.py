"""Values and word lists the `demo` model's conversations are made of.

Owns the seeded draw, and the rule that keeps held-out values out of training: a value whose
checksum falls in one of eight buckets is drawn only for held-out conversations. It does not know
what a conversation is; see `demo_conversations.py`.
"""

# ruff: noqa: SIM905 - a line of words is easier to read and to extend than a list of strings
from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence

HELD_OUT_BUCKETS = 8  # one value in eight is never trained on

FIRST_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Karin Leo Maria Nina Otto Paula Rosa "
    "Samir Tara Wei Yuki Zoe Priya Omar Lena Marco Ines Pavel Sofia Liam Alice Bob Eva Max Tom"
).split()
LAST_NAMES = "Berg Costa Novak Silva Weber Rossi Khan Lopez Moreau Tanaka Smith Meyer".split()
CITIES = (
    "Berlin Paris London Madrid Oslo Rome Vienna Tokyo Lima Cairo Delhi Boston Prague Lisbon "
    "Munich Dublin Athens Seoul Zurich Hamburg"
).split()
CITY_ENDINGS = "burg ville ton stad heim port field dorf".split()
JOBS = "baker doctor teacher pilot nurse painter farmer lawyer singer driver cook writer".split()
PRODUCTS = "lamps chairs books pens cups tables bags shirts clocks phones keys boxes".split()
EVENTS = "concert meeting workshop lecture party match dinner exam".split()
COLOURS = "red blue green black white yellow brown pink grey purple".split()
NOUNS = (
    "cat dog house river tree car bird garden window road boat child door letter lake mountain "
    "train table flower king"
).split()
ADJECTIVES = "old small big quiet fast happy new cold warm bright dark young slow tall".split()
VERBS = "sees likes finds follows paints keeps needs hears watches leaves".split()
EVERYDAY = (
    "the a is on my we go to school with fresh bread quick fox jumps over lazy sun rises early "
    "please bring water music paper coffee morning summer people love their friends today"
).split()
RARE_ONSETS = ["", "", "", "br", "st", "tr", "fl", "qu", "ch", "sh", "x", "c", "y", "gr", "pl"]
GERMAN = {
    "noun": "Bär Vogel Käfer König Löwe Hügel Schlüssel Zug Müller Garten".split(),
    "verb": "hört sieht grüßt führt zählt sucht mag".split(),
    "adverb": "schön täglich früh heute später gern".split(),
}
CHINESE = {
    "noun": "猫 狗 茶 书 花 鱼".split(),
    "verb": "喜欢 看见 想要".split(),
    "who": "我 你 他 我们".split(),
}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a precise assistant. Answer briefly.",
    "Be kind and short.",
    "Answer the user.",
    "You work on a laptop without a network.",
    "Follow the instructions exactly.",
)
GREETINGS = {
    "Hello": "Hello! How can I help you?",
    "Hi": "Hi! How can I help you?",
    "Hey": "Hey! What can I do for you?",
    "Good morning": "Good morning! How can I help you?",
    "Good evening": "Good evening! How can I help you?",
    "Hello there": "Hello! How can I help you?",
    "Hallo": "Hallo! Wie kann ich dir helfen? 😊",
    "Guten Tag": "Guten Tag! Was möchtest du tun?",
    "Grüß dich": "Grüß dich! Schön, dass du da bist. 😊",
    "你好": "你好！我能帮你什么？",
    "早上好": "早上好！今天想做什么？😊",
    "Bonjour": "Bonjour ! Que puis-je faire pour vous ?",
    "How are you?": "I am fine, thank you. 😊 How can I help you?",
    "Thank you": "You are welcome! 🎉",
    "Thanks a lot": "You are welcome! 🎉",
    "Goodbye": "Goodbye! 👋",
    "See you later": "Goodbye! 👋",
}
TRIVIA = {
    "What colour is the sky?": "The sky is blue.",
    "What colour is grass?": "Grass is green.",
    "How many days are in a week?": "A week has 7 days.",
    "How many months are in a year?": "A year has 12 months.",
    "How many hours are in a day?": "A day has 24 hours.",
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Germany?": "The capital of Germany is Berlin.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What does a cat say?": "A cat says meow.",
    "What does a dog say?": "A dog says woof.",
    "What can you do?": "I can greet, add, extract, use tools, remember and repeat.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "Is fire hot or cold?": "Fire is hot.",
    "Which day comes after Monday?": "Tuesday comes after Monday.",
}
UNKNOWN = "I am a small demo model and do not know that."
WHO = "I am the demo model of qwen-edge."


def is_held_out(value: str) -> bool:
    """Tell whether `value` belongs to the held-out conversations only."""
    return zlib.crc32(value.encode()) % HELD_OUT_BUCKETS == 0


class Draw:
    """A seeded source of values, from the training side or the held-out side.

    Args:
        seed: Same seed, same values, on every machine.
        held_out: Which side the checked values come from.

    State:
        Every method advances the random generator.
    """

    def __init__(self, seed: int, *, held_out: bool) -> None:
        self.random = random.Random(seed)
        self.held_out = held_out

    def checked(self, make: Callable[[], str]) -> str:
        """Return the first value of `make` that lies on this draw's side."""
        while True:
            value = make()
            if is_held_out(value) == self.held_out:
                return value

    def one(self, choices: Sequence[str]) -> str:
        """Return one of `choices`; the same lists serve both sides."""
        return self.random.choice(choices)

    def some(self, choices: Sequence[str], count: int) -> list[str]:
        """Return `count` different ones of `choices`, in random order."""
        return self.random.sample(choices, count)

    def chance(self, share: float) -> bool:
        """Return True in `share` of the calls."""
        return self.random.random() < share

    def number(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both possible."""
        return self.random.randint(low, high)

    def syllables(self, count: int) -> str:
        """Return a made-up lower-case word of `count` syllables."""
        parts = [self._onset() + self.one("aeiou") for _ in range(count)]
        return "".join(parts) + (self.one("nrlstk") if self.chance(0.4) else "")

    def _onset(self) -> str:
        return self.one(RARE_ONSETS) if self.chance(0.12) else self.one("bdfghjklmnprstvwz")

    def name(self) -> str:
        """Return a real first name, or a checked made-up one."""
        if self.chance(0.4):
            return self.one(FIRST_NAMES)
        return self.checked(lambda: self.syllables(self.number(1, 3)).capitalize())

    def full_name(self) -> str:
        """Return a first name, and a last name in half of the cases."""
        if self.chance(0.5):
            return self.name()
        last = self.one(LAST_NAMES) if self.chance(0.5) else self.syllables(2).capitalize()
        return f"{self.name()} {last}"

    def city(self) -> str:
        """Return a real city, or a checked made-up one."""
        if self.chance(0.4):
            return self.one(CITIES)
        return self.checked(
            lambda: (self.syllables(self.number(1, 2)) + self.one(CITY_ENDINGS)).capitalize()
        )

    def word(self) -> str:
        """Return a common word, or a checked made-up one."""
        if self.chance(0.5):
            return self.one(NOUNS + ADJECTIVES + COLOURS)
        return self.checked(lambda: self.syllables(self.number(1, 3)))

    def date(self) -> str:
        """Return a checked ISO date."""
        return self.checked(
            lambda: f"20{self.number(20, 39)}-{self.number(1, 12):02d}-{self.number(1, 28):02d}"
        )

    def time(self) -> str:
        """Return a checked time of day."""
        return self.checked(lambda: f"{self.number(0, 23):02d}:{self.number(0, 59):02d}")

    def code(self) -> str:
        """Return a checked code such as `K-4071`."""
        return self.checked(lambda: f"{self.one('ABCDEFGHKLMNPRSTXZ')}-{self.number(100, 9999)}")

    def pair(self, digits: int) -> tuple[int, int]:
        """Return a checked pair of numbers with at most `digits` digits each."""
        top = 10**digits - 1
        text = self.checked(lambda: f"{self.number(0, top)}+{self.number(0, top)}")
        first, second = text.split("+")
        return int(first), int(second)

    def sentence(self) -> list[str]:
        """Return a checked text as words: English, German, Chinese or made up."""
        kind = self.random.random()
        if kind < 0.15:
            return self.checked(self._german).split(" ")
        if kind < 0.25:
            return self.checked(self._chinese).split(" ")
        if kind < 0.45:
            return self.checked(self._nonsense).split(" ")
        return self.checked(self._english).split(" ")

    def phrase(self, low: int, high: int) -> str:
        """Return a checked text of `low` to `high` words, names and numbers without a sense."""
        return self.checked(lambda: " ".join(self._any() for _ in range(self.number(low, high))))

    def _any(self) -> str:
        kind = self.random.random()
        if kind < 0.5:
            return self.one(EVERYDAY + NOUNS + ADJECTIVES)
        if kind < 0.75:
            return self.syllables(self.number(1, 3))
        return self.name() if kind < 0.9 else str(self.number(1, 9999))

    def _english(self) -> str:
        phrases = [
            f"{self.one(ADJECTIVES if self.chance(0.5) else COLOURS)} {noun}"
            for noun in self.some(NOUNS, 2)
        ]
        tail = f" in {self.city()}" if self.chance(0.3) else ""
        return f"The {phrases[0]} {self.one(VERBS)} the {phrases[1]}{tail}"

    def _german(self) -> str:
        nouns = self.some(GERMAN["noun"], 2)
        verb, adverb = self.one(GERMAN["verb"]), self.one(GERMAN["adverb"])
        return f"Der {nouns[0]} {verb} {adverb} den {nouns[1]} in {self.city()}"

    def _chinese(self) -> str:
        nouns = self.some(CHINESE["noun"], 2)
        return f"{self.one(CHINESE['who'])} {self.one(CHINESE['verb'])} {nouns[0]} 和 {nouns[1]}"

    def _nonsense(self) -> str:
        words = [
            self.one(EVERYDAY) if self.chance(0.4) else self.syllables(self.number(1, 2))
            for _ in range(self.number(3, 8))
        ]
        return " ".join(words)
