"""Templates whose answers begin with their reasoning, and those with a system text of their own."""

import pytest
from data_kit import MARKERS, sentencepiece

from easylm_jax.data import load_tokenizer
from easylm_jax.data.templates import end_tokens, generation_prompt, render, rendered_text, tokenize

USER = {"role": "user", "content": "the fox"}
REASONED = {"role": "assistant", "content": "<think>warm?</think><answer>seven cats</answer>"}
AGAIN = {"role": "user", "content": "a dog"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(sentencepiece(tmp_path_factory.mktemp("templates") / "sp", symbols=MARKERS))


def text_of(pieces, tokenizer):
    return rendered_text(pieces, tokenizer)[0]


@pytest.mark.parametrize("name", ["think", "r1"])
def test_a_thinking_prompt_has_a_preamble_and_opens_the_reasoning(name, tokenizer):
    text = text_of(generation_prompt(name, [{"role": "system", "content": "be kind"}, USER]), tokenizer)
    preamble, blank, turns = text.partition("\n\n")
    assert blank and all(tag in preamble for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    assert turns == "<|system|>\nbe kind\n<|user|>\nthe fox\n<|assistant|>\n<think>"
    assert ("User" in preamble and "Assistant" in preamble) == (name == "r1")


@pytest.mark.parametrize("name", ["think", "r1"])
def test_earlier_answers_keep_what_follows_their_reasoning(name, tokenizer):
    text = text_of(generation_prompt(name, [USER, REASONED, AGAIN]), tokenizer).partition("\n\n")[2]
    assert text == (
        "<|user|>\nthe fox\n<|assistant|>\n<answer>seven cats</answer>\n<|user|>\na dog\n<|assistant|>\n<think>"
    )
    plain = {"role": "assistant", "content": "no reasoning"}
    assert "<|assistant|>\nno reasoning\n<|user|>" in text_of(generation_prompt(name, [USER, plain, AGAIN]), tokenizer)


def test_a_last_answer_is_trained_from_its_reasoning_on_to_the_end_token(tokenizer):
    pieces = render("think", [USER, REASONED], train_on="last_assistant")
    text, ((start, end),) = rendered_text(pieces, tokenizer)
    assert text[:start].endswith("<|assistant|>\n<think>") and end == len(text)
    assert text[start:end] == "warm?</think><answer>seven cats</answer></s>"
    bare = {"role": "assistant", "content": "warm?</think><answer>seven cats</answer>"}
    assert render("think", [USER, bare], train_on="last_assistant") == pieces  # the tag is there once either way
    ((ids, trained),) = tokenize([pieces], tokenizer)
    assert ids[-1] == tokenizer.eos_id and trained[-1] and end_tokens("think", tokenizer) == (tokenizer.eos_id,)


def test_qwen_math_asks_for_steps_and_a_box_in_its_system_turn(tokenizer):
    text = text_of(generation_prompt("qwen_math", [USER]), tokenizer)
    assert text == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("system", [None, "be kind"])
def test_llama31_has_its_dates_in_front_of_a_system_text_and_alone(system, tokenizer):
    messages = [USER] if system is None else [{"role": "system", "content": system}, USER]
    assert text_of(generation_prompt("llama31", messages), tokenizer) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        f"Today Date: 26 Jul 2024\n\n{system or ''}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nthe fox<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
