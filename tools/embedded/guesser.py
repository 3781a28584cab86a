"""What can be guessed about a fact from its subject's spelling alone: the yardstick for facts that were never told."""

from collections import Counter

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from tools.embedded.facts import Relation

_NEIGHBOURS = 5


def guesses(relation: Relation) -> tuple[dict[str, str], dict[str, str]]:
    """Guess the answers of a relation's withheld facts from its trained ones.

    Returns:
        Two guesses by fact key: the commonest answer, and that of the five subjects spelled most alike, by character
        n-grams.
    """
    trained = [fact for fact in relation.facts if not fact.withheld]
    withheld = [fact for fact in relation.facts if fact.withheld]
    if not withheld:
        return {}, {}
    answers = [fact.answers[0] for fact in trained]
    keys = [fact.key for fact in withheld]
    ((common, _),) = Counter(answers).most_common(1)
    spelling = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4)).fit([fact.subject for fact in trained])
    known, unknown = (spelling.transform([fact.subject for fact in facts]) for facts in (trained, withheld))
    spelled = {}
    for key, similarities in zip(keys, (unknown @ known.T).toarray(), strict=True):
        votes: Counter[str] = Counter()
        for place in np.argsort(-similarities, kind="stable")[:_NEIGHBOURS]:
            votes[answers[place]] += similarities[place]
        spelled[key] = votes.most_common(1)[0][0]
    return dict.fromkeys(keys, common), spelled
