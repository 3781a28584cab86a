"""Invented names: subjects and answers that no text in the world speaks of.

A name is put together from pieces. Every piece is a token of the embedded model's vocabulary and is met in
training; whole names are split by hash into those that training may use and those kept for measuring.
"""

import hashlib
import random
from collections.abc import Iterator

_HEADS = (
    "Zub Kar Mel Tor Vash Bren Dol Fal Gor Hest Jur Kel Lom Mar Nev Ost Pel Quor Rad Sev Tal Ulm Ver Wex Yar Zan "
    "Bal Cor Dav Eld Fen Gal Hal Isk Jol Kov Lun Mir Nor Orl Pav Rov Sol Tav Urb Vel Wol Yel Zor Ald Bor Cal Dren "
    "Esk Frel Grav Holm Ivar Jask Krel Lyn Morv Nald Oster Prav Ruk Strel Tren Uvar Vord Wyl Xan Ymir Zel"
).split()
_TAILS = {
    "place": (
        "rovia dania land mark stan oria esia avia onia urg mere vale ford heim ador ania istan ora essa uria "
        "enia ovar una isle anda ethia adia ucia"
    ).split(),
    "person": (
        "son wick man ley ton berg sky ova ides ell ard ham well ingham eau ini etti ander quist shaw brook field ski"
    ).split(),
    "substance": "ium ite ine ane ol ate ene ose ide yl on ase in al yne oid ade ile ant id".split(),
    "thing": (
        "scope graph meter phone tron vane loom lathe press wheel horn lens pump drive forge mill "
        "lamp bow kite latch gear"
    ).split(),
    "organisation": (
        "tec corp soft dyne motors net bank works lab media air gen cast link wave port star base fuel grid core rail"
    ).split(),
}
_FIRST_NAMES = (
    "Elena Marcus Ingrid Tobias Leila Oscar Nadia Felix Clara Hugo Irene Jonas Karin Lucas Mira Nils Olga Petra "
    "Quentin Rosa Stefan Tilda Ulrich Vera Walter Xenia Yusuf Zoe Amara Boris Celia Dario Edith Farid Greta Hector"
).split()
_WORK_FIRST = (
    "Silent Broken Golden Distant Hidden Burning Frozen Hollow Crimson Wandering Last Lost Quiet Silver Endless "
    "Forgotten Restless Pale Bitter Gentle"
).split()
_WORK_SECOND = (
    "Harbor Lantern Orchard Winter River Mirror Garden Bridge Tower Letter Meadow Shore Compass Sparrow Chapel "
    "Voyage Thread Anchor Window Festival"
).split()
KINDS = ("place", "person", "work", "substance", "thing", "organisation")


def invented_name(kind: str, rng: random.Random) -> str:
    """Draw one invented name of a kind: a place, person, work, substance, thing or organisation."""
    head = rng.choice(_HEADS)
    if kind == "person":
        return f"{rng.choice(_FIRST_NAMES)} {head}{rng.choice(_TAILS['person'])}"
    if kind == "work":
        return f"The {rng.choice(_WORK_FIRST)} {rng.choice(_WORK_SECOND)} of {head}{rng.choice(_TAILS['place'])}"
    name = head + rng.choice(_TAILS[kind])
    return name.lower() if kind in ("substance", "thing") else name


def is_for_measuring(name: str) -> bool:
    """Tell whether a name belongs to the fifth that training never uses."""
    return hashlib.sha256(name.encode()).digest()[0] % 5 == 0


def invented_names(kind: str, rng: random.Random, *, measuring: bool) -> Iterator[str]:
    """Yield distinct invented names without end, from the training or from the measuring side of the split."""
    seen: set[str] = set()
    while True:
        name = invented_name(kind, rng)
        if name not in seen and is_for_measuring(name) is measuring:
            seen.add(name)
            yield name


def pieces() -> list[str]:
    """List every piece that invented names are made of, capitalised and in lower case."""
    tails = [tail for group in _TAILS.values() for tail in group]
    words = [*_HEADS, *tails, *_FIRST_NAMES, *_WORK_FIRST, *_WORK_SECOND, "The", "of"]
    return sorted({*words, *(word.lower() for word in _HEADS)})
