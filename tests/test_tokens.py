"""Responses coloured token by token."""

import doctest

from tools import tokens


def test_examples_in_docstrings_hold():
    assert doctest.testmod(tokens).failed == 0


def test_every_token_is_escaped_and_shows_its_number():
    html = tokens.coloured(["<script>", "&", ";"], [1.0, None, 12.0], "ratio")
    assert "<script>" not in html and "&lt;script&gt;" in html and "&amp;" in html
    assert 'title="12"' in html


def test_what_the_mask_takes_out_and_what_is_clipped_is_struck_through():
    inside, below, above = (tokens.coloured(["x"], [ratio], "ratio") for ratio in (0.02, 0.001, 11.0))
    assert "line-through" not in inside and "line-through" in below and "line-through" in above
    assert "line-through" in tokens.coloured(["x"], [1.3], "importance", clipped=[True])


def test_one_value_colours_all_tokens():
    html = tokens.coloured(["a", "b"], -0.5, "advantage")
    assert html.count('title="-0.5"') == 2


def test_a_legend_names_its_scale():
    for name, scale in tokens.SCALES.items():
        assert scale.name in tokens.legend(name)


def test_pieces_join_to_the_text(tiny_policy):
    text = "7; 16. \\boxed{16}"
    ids = tiny_policy.tokenizer(text).input_ids
    shown = tokens.pieces(tiny_policy.tokenizer, ids)
    assert len(shown) == len(ids) and "".join(shown) == tiny_policy.tokenizer.decode(ids)
