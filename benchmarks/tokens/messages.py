"""Ham and spam of our own making: a seeded grammar of short messages, and their words as ids.

Both kinds share greetings, small talk and many words (ham speaks of offers and invoices, too; spam
begins like a colleague), so that no single word decides.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from torch import Tensor

LENGTH = 24
PAD, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unknown>")

SLOTS = {
    "name": "anna ben clara david elif farid grace hugo ines jonas kofi lena marco nadia omar "
    "petra",
    "day": "monday tuesday wednesday thursday friday saturday sunday tomorrow tonight today",
    "time": "noon nine ten eleven two three four five six seven",
    "thing": "report invoice draft budget contract ticket slides review schedule photo recipe book",
    "place": "office station cafe library school gym airport kitchen garden hotel",
    "meal": "lunch dinner coffee breakfast cake soup",
    "work": "meeting call workshop deadline interview training release",
    "feel": "glad sorry happy tired late sure ready fine",
    "prize": "prize voucher phone holiday laptop gift jackpot cruise",
    "money": "cash loan bonus refund credit income discount savings",
    "push": "now immediately today urgently fast instantly",
    "brand": "bank account parcel subscription wallet card delivery",
    "amount": "hundred thousand million double fifty five",
    "goods": "pills watches software tickets insurance medicine shoes",
}
OPENERS = (
    "hi {name}", "hello {name}", "dear {name}", "hey", "good morning", "thanks for your message",
    "hope you are well", "quick question", "hi all", "hello again",
)  # fmt: skip
HAM = (
    "can we move the {work} to {day} at {time}", "i will be {feel} for the {work} on {day}",
    "please send me the {thing} before the {work}", "are you free for {meal} on {day}",
    "the {thing} is on the table in the {place}",
    "i am {feel} but the train to the {place} is late",
    "did you read the {thing} that {name} sent", "let us meet at the {place} at {time}",
    "the offer from the {place} looks fair to me", "{name} asked about the {thing} again",
    "we paid the invoice on {day} so the account is fine", "i lost my phone at the {place}",
    "our holiday starts on {day} and we are {feel}", "the kids want {meal} at {time}",
    "no need to answer today", "your parcel is at the {place} for you", "see you {day}",
    "i won two games at the {place}", "call me when you are at the {place}",
    "the discount for the {work} ends on {day} says {name}", "click was the sound that it made",
)  # fmt: skip
SPAM = (
    "you have won a {prize} claim it {push}", "your {brand} is locked click the link {push}",
    "get {amount} in {money} without any risk", "verify your {brand} to receive your {prize}",
    "cheap {goods} delivered to you {push}", "reply with your card number to get the {prize}",
    "limited offer {amount} percent discount on {goods}", "earn {amount} a day from home",
    "your {money} is waiting confirm your {brand}", "act {push} this offer ends {day}",
    "free {prize} for the first hundred that answer", "we tried to deliver your {brand} pay {push}",
    "a secret way to {amount} in {money}", "your payment failed update your {brand} {push}",
    "congratulations {name} you were selected for a {prize}", "no credit check {money} {push}",
)  # fmt: skip
BETWEEN = ("and", "so", "also", "by the way", "please", "", "", "")


def write_message(spam: bool, source: random.Random) -> list[str]:
    """One message as words: an opener, two or three sentences, here and there one of small talk."""
    parts = [source.choice(OPENERS)]
    for place in range(source.choice((2, 2, 3))):
        small_talk = spam and place == 0 and source.random() < 0.4
        parts.append(source.choice(HAM if small_talk or not spam else SPAM))
        parts.append(source.choice(BETWEEN))
    filled = [re.sub(r"\{(\w+)\}", lambda m: source.choice(SLOTS[m[1]].split()), p) for p in parts]
    return " ".join(filled).split()


def vocabulary() -> list[str]:
    """Every word that the grammar can write, in order, behind the special ones."""
    text = " ".join((*SLOTS.values(), *OPENERS, *HAM, *SPAM, *BETWEEN))
    return [*SPECIAL, *sorted(set(re.sub(r"\{\w+\}", " ", text).split()))]


def encode(messages: Sequence[Sequence[str]]) -> Tensor:
    """Messages as ids (n, LENGTH), cut or filled up with padding."""
    known = {word: place for place, word in enumerate(vocabulary())}
    ids = torch.full((len(messages), LENGTH), PAD)
    for row, words in enumerate(messages):
        kept = [known.get(word, UNKNOWN) for word in words[:LENGTH]]
        ids[row, : len(kept)] = torch.tensor(kept)
    return ids


def mailbox(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """`n` messages, every second one spam: ids (n, LENGTH), labels (n,), 1 for spam."""
    source = random.Random(seed)
    labels = [place % 2 for place in range(n)]
    return encode([write_message(bool(label), source) for label in labels]), torch.tensor(labels)
