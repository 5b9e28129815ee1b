"""The two small vocabularies, CLIP's byte-level BPE and BERT's WordPiece; they cover any text."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from stage import generator
from world import caption, sample_asked

# Common prompt words outside the tiny world, so that they are not split into letters.
EVERYDAY = """
the a an of in on at with and or to from near under over behind beside between by for is are that
this it his her photo picture drawing painting image style digital art cartoon cute funny small big
little large tiny huge old young beautiful colorful bright dark light standing sitting running
jumping flying sleeping eating playing looking holding wearing one many several some few house tree
flower grass sky sun star water sea river lake mountain forest field garden city street road car
horse cow sheep fish duck frog bear mouse elephant man woman boy girl child person people hat table
chair book ball box bowl plate black gold silver golden day night winter summer spring autumn
""".split()


def corpus() -> list[str]:
    rng = generator(2)
    captions = [caption(sample_asked(rng)[1], rng).lower() for _ in range(4000)]
    return captions + EVERYDAY * 20


def bpe(folder: Path, length: int = 32) -> CLIPTokenizer:
    """Train CLIP's byte-level BPE, save it in ``folder`` and load it from there.

    All 256 bytes are in it, alone and at the end of a word, so any text can be encoded.
    """
    if not (folder / "vocab.json").exists():
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=1100,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            show_progress=False,
            min_frequency=5,
        )
        words = [word for text in corpus() for word in _split(text)]
        trained.train_from_iterator(words, trainer)
        merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
        tokens = alphabet + [f"{letter}</w>" for letter in alphabet]
        tokens += [
            "".join(pair) for pair in dict.fromkeys(merges) if "".join(pair) not in set(tokens)
        ]
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
        made = CLIPTokenizer(
            vocab=vocab, merges=merges, model_max_length=length, pad_token="<|endoftext|>"
        )
        made.save_pretrained(folder)
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def wordpiece() -> list[str]:
    """Return a BERT vocabulary: special tokens, letters alone and inside words, whole words."""
    words = sorted({word for text in corpus() for word in _split(text)})
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return list(dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words]))


def _split(text: str) -> list[str]:
    return text.replace(".", " . ").split()
