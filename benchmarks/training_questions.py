"""Questions about long documents composed of training passages, as data sets that `acre eval` reads.

python -m benchmarks.training_questions --data qa_train.jsonl.gz --out runs/training_questions
acre sweep passage_tokens --data own:xquad_en=runs/training_questions/xquad_en.jsonl ... --out runs/passages

What is chosen by its answers (a default, a size) is chosen on these, and not on the documents that are evaluated.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acre_rag.training.data.located import compose
from acre_rag.training.data.record import Record
from acre_rag.training.data.source import load_pairs

SOURCES = ("xquad_en", "fairytaleqa", "nq_open", "quoref_contrast")
"""Collections with answers of a few words and passages of 500 to 1,900 characters on average."""


def main() -> None:
    """One file a collection."""
    options = _options()
    pairs = list(load_pairs(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        own = [pair for pair in pairs if pair.source == source]
        rows = [*records(own, n_questions=options.questions, n_documents=options.documents, seed=options.seed)]
        path = options.out / f"{source}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} questions in {path}")


def records(pairs: list[Record], *, n_questions: int, n_documents: int, seed: int) -> Iterator[dict[str, Any]]:
    """Lines of a file of questions: document, its name, question, answers.

    Args:
        pairs: QA pairs of one collection.
        n_questions: in all.
        n_documents: most documents.
        seed: of the sample.
    """
    times = Counter(pair.question for pair in pairs)
    answers = {pair.question: pair.answers for pair in pairs if times[pair.question] == 1}
    for number, document in enumerate(compose(pairs, n_questions=n_questions, seed=seed, n_documents=n_documents)):
        for asked in document.questions:
            if asked.question not in answers:
                continue  # asked of several passages: whose answer is right here is not known
            yield {
                "document_id": f"composed-{number}",
                "document": document.text,
                "question": asked.question,
                "answers": list(answers[asked.question]),
            }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="QA pairs, each with the collection it is from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=24, help="of each collection")
    parser.add_argument("--documents", type=int, default=3, help="of each collection")
    parser.add_argument("--seed", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
