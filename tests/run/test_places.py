"""Where responses are cut: by entropy and at revision cues, on texts and numbers written by hand."""

import dataclasses

import numpy as np
import pytest

from dasd_jax.run import places
from dasd_jax.run.places import BY_ENTROPY, Response
from dasd_jax.text.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


def test_every_place_that_fits_can_be_chosen_and_no_other():
    tokens = np.arange(10, dtype=np.int32)
    response = Response(
        example_id=0,
        sample=0,
        tokens=tokens,
        entropy=np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.1, 0.2, 0.3, 0.1, 0.2], np.float32),
        student=tokens,
        teacher=np.where(np.isin(tokens, [1, 3, 4, 8]), 99, tokens),
        cue=None,
        at_cue=tokens,
    )
    chosen = {arm: set() for arm in BY_ENTROPY}
    for seed in range(60):
        for pair in places.pairs(TOKENIZER, response, seed, 24):
            chosen[pair.arm].add(pair.place)
    assert chosen == {"high entropy": {1, 4}, "low entropy": {3, 8}, "random": {1, 3, 4, 8}}
    alike = dataclasses.replace(response, teacher=tokens)
    assert places.pairs(TOKENIZER, alike, 0, 24) == []
    assert places.pairs(TOKENIZER, dataclasses.replace(response, teacher=None), 0, 24) == []


def response_of(text, likeliest=""):
    """A response of the byte tokenizer, whose teacher agrees with it."""
    tokens = np.array([*TOKENIZER.encode(text), *TOKENIZER.stop_ids], np.int32)
    at_cue = np.array(TOKENIZER.encode(likeliest), np.int32)
    draw = np.random.default_rng(0)
    cue = places.find_cue(TOKENIZER, tokens, draw)
    return Response(0, 0, tokens, np.arange(len(tokens), dtype=np.float32), tokens, tokens, cue, at_cue)


@pytest.mark.parametrize(
    ("text", "cue"),
    [
        ("So 4. Wait, 5?", "Wait"),
        ("é😀 so: hmmm 5", "hmmm"),
        ("That's wrong: 5", "That's wrong"),
        ("Let me double-check it", "Let me double-check"),
        ("The waiter awaits", None),
        ("Let me see", None),
    ],
)
def test_a_cue_is_found_in_tokens(text, cue):
    found = response_of(text)
    if cue is None:
        assert found.cue is None
    else:
        assert TOKENIZER.decode(found.tokens[found.cue.start : found.cue.end]) == cue
        assert found.cue.text == cue.lower()


def test_a_suppressed_cue_gives_way_to_the_likeliest_token_that_begins_none():
    response = response_of("4. Wait, 5?", likeliest="WwTt")
    [pair] = [pair for pair in places.pairs(TOKENIZER, response, 0, 99) if pair.arm == "suppress cue"]
    assert TOKENIZER.decode(pair.control) == "4. Wait" and TOKENIZER.decode(pair.treated) == "4. T"
    only_cues = response_of("4. Wait, 5?", likeliest="Ww")
    assert not [pair for pair in places.pairs(TOKENIZER, only_cues, 0, 99) if pair.arm == "suppress cue"]
    for piece, begins in {" Wait": 1, "WAI": 1, "Waiting": 1, " Hmm": 1, "Actually": 1, "We": 0, " ": 0, "": 0}.items():
        assert places._begins_cue(piece, "wait") == begins, piece


def forced(text, budget=99):
    """The texts of both sides wherever a cue can be forced, over many seeds."""
    response = response_of(text)
    found = [pair for seed in range(40) for pair in places.pairs(TOKENIZER, response, seed, budget)]
    return {
        (TOKENIZER.decode(pair.control), TOKENIZER.decode(pair.treated)) for pair in found if pair.arm == "force cue"
    }


def test_a_cue_is_forced_at_ends_of_sentences_that_none_follows():
    assert forced("It is 3.5 so. Then\nno. Wait, 5") == {
        ("It is 3.5 so.", "It is 3.5 so. Wait,"),
        ("It is 3.5 so. Then", "It is 3.5 so. Then Wait,"),
    }
    assert forced("no end 3.5") == forced("It is 4. Wait, 5") == set()


def test_a_cue_is_forced_only_where_there_is_room_to_go_on():
    text = "One. Two."
    assert forced(text, budget=len("One. Wait,") + 1) and not forced(text, budget=len("One. Wait,"))
