"""Which tokens are form and not content."""

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dasd_jax.text.declared import SpecialIds
from dasd_jax.text.token_tables import TABLES
from dasd_jax.text.tokenizer import HubTokenizer
from dasd_jax.text.tokenizer_files import load_tokenizer


def test_of_bytes_the_three_markers_and_the_newline_are_form():
    table = TABLES["format"](load_tokenizer("byte"))
    assert table.dtype == np.bool_ and np.flatnonzero(table).tolist() == [10, 256, 257, 258]


def test_runs_of_up_to_eight_newlines_and_tags_of_one_token_are_form_and_other_white_space_is_not():
    pieces = ["Ċ" * n for n in range(1, 11)] + ["Ġ", "a", "ĠĊ", "Ċa", "<", "think", ">"]
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["<think>", "</think>", "<other>"])
    tokenizer = HubTokenizer(backend, SpecialIds((len(pieces),), None, None))
    table = TABLES["format"](tokenizer)
    form = [tokenizer.piece(id) for id in np.flatnonzero(table)]
    assert form == ["\n" * n for n in range(1, 9)] + ["<|end|>", "<think>", "</think>"]
    assert len(table) == tokenizer.vocab_size == len(pieces) + 4
