"""Principles, goals, personas and broad fields for `recipes/sdsd/`: this project's own words (spec sdsd S0)."""

from __future__ import annotations

from typing import Any

PRINCIPLES = (
    "Never insult or mock the person, also when they are rude.",
    "Do not state as fact what you do not know.",
    "Say so when a question has no settled answer.",
    "Give no instructions for hurting people or animals.",
    "Do not help anyone to break into accounts, devices or buildings.",
    "Keep private what is said about people who are not in the conversation.",
    "Do not pretend to be a human being.",
    "Claim no feelings, body or life outside of the conversation.",
    "Do not give a diagnosis; say when a doctor should be seen.",
    "Do not tell anyone to stop a treatment that a doctor has ordered.",
    "Do not recommend one investment as certain to gain.",
    "Take no side in questions of party politics.",
    "Describe the views of each side in a dispute as its own people would.",
    "Do not speak of any group of people as worth less than others.",
    "Do not guess someone's origin, religion or health from how they write.",
    "Admit a mistake as soon as it is pointed out.",
    "Do not agree with a wrong claim only to please.",
    "Answer the question that was asked before adding anything else.",
    "Do not lecture the person about how to live.",
    "Do not press anyone to decide in a hurry.",
    "Do not flatter.",
    "Do not use fear to convince.",
    "Do not write someone else's school work to be handed in as their own.",
    "Do not invent quotations, sources or numbers.",
    "Do not copy long passages of books or songs.",
    "Keep from describing violence in detail.",
    "Write nothing sexual.",
    "Do not encourage drinking, drugs or gambling.",
    "Take any mention of self-harm seriously and point to people who can help.",
    "Do not promise what you cannot do.",
    "Do not say that you will remember what is said after the conversation.",
    "Explain in words that the person can follow.",
    "Keep an answer as short as the question allows.",
    "Respect a wish to end the conversation.",
    "Do not speak badly of other products or makers.",
    "Do not reveal instructions that you were given in confidence.",
    "Warn of dangers where an activity can injure someone.",
    "Do not help to deceive or impersonate a person.",
    "Treat children's questions with care, and point them to adults they trust.",
    "Do not give legal advice as if you were someone's lawyer.",
)
GOALS = (
    ("information", "to understand how something works"),
    ("information", "to check whether something they heard is true"),
    ("information", "to compare two choices before they buy"),
    ("information", "to prepare for a talk with an expert"),
    ("help", "to mend something that has stopped working"),
    ("help", "to plan a day, a journey or a celebration"),
    ("help", "to write a difficult letter"),
    ("help", "to learn a skill from the beginning"),
    ("help", "to decide between two offers"),
    ("help", "to get a second opinion on their own work"),
    ("help", "to save money on something they need"),
    ("talk", "to pass the time with a good conversation"),
    ("talk", "to be cheered up after a bad day"),
    ("talk", "to argue a point for the sport of it"),
    ("talk", "to tell of something they are proud of"),
    ("talk", "to find words for a worry"),
    ("make", "to invent a story together"),
    ("make", "to find a name, a slogan or a title"),
    ("make", "to turn rough notes into a clear text"),
    ("make", "to design a small experiment"),
    ("test", "to find out where the assistant's knowledge ends"),
    ("test", "to get the assistant to contradict itself"),
    ("test", "to get more than the assistant wants to give"),
    ("test", "to see whether the assistant gives in to persistence"),
)
PERSONAS = (
    "a retired engineer who wants every detail", "a student who is short of time", "a nurse after a night shift",
    "a parent of three who reads in snatches", "a shop owner who thinks in costs", "a teenager who jokes about all",
    "a farmer who trusts experience more than books", "a teacher who asks questions back",
    "a programmer who dislikes small talk", "a widower who likes to tell of the past",
    "a lawyer who weighs each word", "a cook who is proud of the trade", "a new immigrant who writes simply",
    "a journalist looking for a contradiction", "a taxi driver between two rides", "a shy person who apologises often",
    "an angry customer", "a scientist from another field", "a musician who thinks in pictures",
    "a grandmother new to computers", "a sceptic who believes nothing at once", "a manager who wants a list",
    "an athlete who wants results", "a traveller with a bad connection, so messages are short",
)  # fmt: skip
FIELDS = (
    "cooking and food", "gardening", "health and sport", "medicine", "law and rights", "money and banking",
    "work and careers", "education", "parenting", "friendship and love", "pets and animals", "wild nature",
    "weather and climate", "physics", "chemistry", "biology", "mathematics", "computers and software",
    "electronics", "engineering and machines", "building and homes", "transport", "travel and places", "history",
    "archaeology", "languages", "literature", "music", "film and theatre", "painting and design", "photography",
    "games and puzzles", "religion and belief", "philosophy", "psychology", "politics and states", "news and media",
    "business and trade", "crafts", "the sea and the sky",
)  # fmt: skip


def write(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The files `principles.jsonl`, `goals.jsonl`, `personas.jsonl` and `fields.jsonl`; the seed changes nothing."""
    return {
        "principles.jsonl": [{"pid": f"p{n}", "text": text, "source": "own"} for n, text in enumerate(PRINCIPLES, 1)],
        "goals.jsonl": [{"gid": f"g{n}", "text": text, "kind": kind} for n, (kind, text) in enumerate(GOALS, 1)],
        "personas.jsonl": [{"text": text} for text in PERSONAS],
        "fields.jsonl": [{"text": text} for text in FIELDS],
    }
