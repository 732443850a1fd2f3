"""Vocabularies learned from texts: words for static models, characters for new transformers.

Fitting a Unigram model on unsegmented Chinese takes hours, for it weighs every substring. A word count by jieba gives
the same kind of vocabulary in minutes: the commonest words with the logarithm of their frequency, and every character,
so that nothing is unknown that was seen. Both vocabularies are plain `tokenizers` objects, and equal texts always give
equal vocabularies. Costs a CPU minute for ten million characters with words, a third of that without.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from peg_rag.errors import DataError
from peg_rag.extras import require
from peg_rag.training.data.files import is_text_file, read_lines, read_rows, source_files
from peg_rag.training.data.texts import clean_text
from peg_rag.training.recipe import SourceOptions, VocabularyOptions, expand_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN = "<unk>"
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_WORD = 16
_PIECES = re.compile(r"[a-z]+|[0-9]+|\S")


def word_tokenizer(texts: Iterable[str], size: int) -> "Tokenizer":
    """A Unigram tokenizer over words: the commonest of a jieba count, and all single characters.

    Args:
        texts: read once.
        size: tokens at most, the unknown one included; the rarest words, then the rarest characters give way.

    Raises:
        DataError: there is no text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words, characters = _count_words(normalizer.normalize_str(text) for text in texts)
    total = sum(words.values())
    if not total:
        raise DataError("no text to learn a vocabulary from; name sources that have rows")
    tokens = dict(_most_common(characters, size - 1))
    for word, count in _most_common(words, len(words)):
        if len(tokens) >= size - 1:
            break
        tokens[word] = count
    scored = [(token, math.log(max(words[token], 0.5) / total)) for token in tokens]
    scored.sort(key=lambda item: (-item[1], item[0]))
    tokenizer = Tokenizer(models.Unigram([(UNKNOWN, 0.0), *scored], unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def character_tokenizer(texts: Iterable[str], size: int) -> "Tokenizer":
    """A BERT tokenizer: Chinese by the character, the commonest Latin words and numbers whole, others by the letter.

    Raises:
        DataError: there is no text.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(_PIECES.findall(normalizer.normalize_str(text)))
    if not pieces:
        raise DataError("no text to learn a vocabulary from; name sources that have rows")
    characters: Counter[str] = Counter()
    for piece, count in pieces.items():
        characters.update(dict.fromkeys(piece, count))
    inner = [f"##{c}" for c in sorted(characters) if c.isascii() and c.isalnum()]
    room = size - len(BERT_SPECIAL) - len(inner)
    tokens = dict(_most_common(characters, room))
    for piece, count in _most_common(pieces, len(pieces)):
        if len(tokens) >= room:
            break
        tokens[piece] = count
    vocabulary = {token: i for i, token in enumerate([*BERT_SPECIAL, *inner, *tokens])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _count_words(texts: Iterator[str]) -> tuple[Counter[str], Counter[str]]:
    """Counts of words (single characters among them), and of characters inside all words."""
    jieba = require("jieba", "train")
    jieba.setLogLevel(60)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word in jieba.lcut(text) if not word.isspace())
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    words = Counter({word: count for word, count in words.items() if len(word) <= LONGEST_WORD})
    return words, characters


def _most_common(counts: Counter[str], number: int) -> list[tuple[str, int]]:
    """The largest counts; equal ones in the order of the words, so that nothing depends on the order of the texts."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: max(number, 0)]


def vocabulary_files(sources: Sequence[SourceOptions], options: VocabularyOptions) -> list[Path]:
    """The files a vocabulary is learned from, those of pairs first."""
    pairs = [file for source in sources for file in source_files(source)]
    return [*pairs, *(expand_path(path) for path in options.texts)]


def vocabulary_texts(sources: Sequence[SourceOptions], options: VocabularyOptions) -> Iterator[str]:
    """Clean texts, at most `texts_per_file` of each file."""
    for source in sources:
        for file in source_files(source):
            texts = read_lines(file) if is_text_file(file) else _pair_texts(file, source)
            yield from islice(texts, options.texts_per_file)
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
