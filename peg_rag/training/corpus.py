"""Texts to learn a vocabulary from: those of the training sources, and further text files."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from peg_rag.training.data import clean_text, read_lines, read_rows, source_files
from peg_rag.training.recipe import SourceOptions, VocabularyOptions, expand_path


def vocabulary_files(sources: Sequence[SourceOptions], options: VocabularyOptions) -> list[Path]:
    """The files a vocabulary is learned from, those of pairs first."""
    pairs = [file for source in sources for file in source_files(source)]
    return [*pairs, *(expand_path(path) for path in options.texts)]


def vocabulary_texts(sources: Sequence[SourceOptions], options: VocabularyOptions) -> Iterator[str]:
    """Clean texts, at most `texts_per_file` of each file."""
    for source in sources:
        for file in source_files(source):
            yield from islice(_pair_texts(file, source), options.texts_per_file)
    for path in options.texts:
        yield from islice(read_lines(expand_path(path)), options.texts_per_file)


def _pair_texts(file: Path, source: SourceOptions) -> Iterator[str]:
    columns = source.columns
    for _, row in read_rows(file):
        if isinstance(row, str):
            continue
        for column in (columns.query, columns.positive):
            if isinstance(value := row.get(column), str):
                yield clean_text(value)
