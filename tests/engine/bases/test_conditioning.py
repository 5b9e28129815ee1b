"""Texts of different lengths: padded when they are put together, and masked."""

import torch

from dpok_cli.engine.bases.conditioning import Conditioning, Text, Texts


def text(*lengths, longest=0, pooled=False):
    """Embeddings whose tokens are 1, 2, 3, ..., and 9 where there is none."""
    longest = longest or max(lengths)
    mask = torch.tensor([[place < length for place in range(longest)] for length in lengths])
    tokens = torch.arange(1.0, longest + 1).expand(len(lengths), longest)
    embeds = torch.where(mask, tokens, 9.0).unsqueeze(2).repeat(1, 1, 2)
    vectors = torch.arange(float(len(lengths))).unsqueeze(1) if pooled else None
    return Text(embeds, vectors, None if mask.all() else mask)


def test_shorter_ones_are_padded():
    both = Text.cat([text(3), text(1, 2)])
    assert both.embeds[:, :, 0].tolist() == [[1, 2, 3], [1, 9, 0], [1, 2, 0]]
    assert both.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]


def test_those_of_one_length_have_no_mask():
    both = Text.cat([text(3, 3, pooled=True), text(3, pooled=True)])
    assert both.mask is None
    assert both.pooled.flatten().tolist() == [0, 1, 0]
    assert Text.cat([text(5)[:0], text(3)]).embeds.shape == (1, 3, 2)  # no rows need no room
    assert Text.cat([text(5)[:0]]).embeds.shape == (0, 5, 2)


def test_a_masked_one_is_still_masked_beside_one_of_its_length():
    both = Text.cat([text(1, 2)[[0]], text(2)])
    assert both.mask.tolist() == [[True, False], [True, True]]


def test_what_no_row_has_is_trimmed():
    whole = text(1, 3, longest=6)
    assert whole.trimmed().embeds.shape == (2, 3, 2)
    assert whole.trimmed().mask.tolist() == [[True, False, False], [True, True, True]]
    alone = whole[[0]].trimmed()
    assert (alone.embeds.tolist(), alone.mask) == ([[[1, 1]]], None)
    assert text(4).trimmed().embeds.shape == (1, 4, 2)


def test_a_token_in_the_middle_may_be_missing():
    mask = torch.tensor([[True, False, True, False]])
    assert Text(torch.zeros(1, 4, 2), mask=mask).trimmed().mask.tolist() == [[True, False, True]]


def test_the_mean_is_of_the_tokens():
    assert text(1, 3).mean().tolist() == [[1, 1], [2, 2]]
    whole = text(3, 3)
    half = whole.to(torch.float16).mean()
    assert (half.dtype, half.tolist()) == (torch.float32, [[2, 2], [2, 2]])


def test_a_mask_stays_one_in_another_precision():
    half = text(1, 2, pooled=True).to(torch.bfloat16)
    assert [each.dtype for each in (half.embeds, half.pooled, half.mask)] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.bool,
    ]


def test_guidance_with_a_negative_prompt_of_another_length():
    doubled = Conditioning(text(2, 1), text(3)).doubled()
    assert doubled.mask.sum(dim=1).tolist() == [3, 3, 2, 1]
    assert doubled.embeds[:, 0, 0].tolist() == [1, 1, 1, 1]


def test_the_tokens_of_each_prompt_alone():
    assert [row[:, 0].tolist() for row in text(1, 3).rows()] == [[1], [1, 2, 3]]
    assert [row[:, 0].tolist() for row in text(2, 2).rows()] == [[1, 2], [1, 2]]


def test_rows_put_together_are_those_of_the_whole():
    parts = [text(2, pooled=True), text(3, pooled=True), text(1, pooled=True)]
    whole, texts = Text.cat(parts), Texts(parts, parts[0][:0])
    assert len(texts) == 3
    for rows in ([2, 0, 2], torch.tensor([1, 1]), slice(1, None), slice(None)):
        some, expected = texts[rows], whole[rows]
        assert torch.equal(some.embeds, expected.embeds)
        assert torch.equal(some.pooled, expected.pooled)
        # As long as the longest of all prompts, so that it does not depend on the batch.
        assert torch.equal(some.mask, expected.mask)
        assert some.embeds.shape[1] == 3


def test_texts_of_one_length_are_not_padded():
    texts = Texts([text(3), text(3)], text(3)[:0])
    assert texts[[1, 0]].mask is None
    assert Texts([], text(5)[:0])[:].embeds.shape == (0, 5, 2)


def test_both_texts_of_a_conditioning_have_the_rows():
    parts = [text(1), text(2)]
    reference = Conditioning(Texts(parts[::-1], parts[0][:0]), text(1))
    both = Conditioning(Texts(parts, parts[0][:0]), text(1), reference)
    assert len(both) == 2
    assert both[[1]].prompts.mask.sum() == 2
    assert both[[1]].reference.prompts.mask.sum() == 1
