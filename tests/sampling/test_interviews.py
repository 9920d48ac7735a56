"""Asking pass by pass: one call each, its settings, and the transcript of every question."""

import pytest
from scripted import Script

from reasoning.sampling.interviews import Interview, Pass, Solution, Solved


def test_a_pass_is_one_call_and_is_kept_with_its_question():
    script = Script([[["a", "b"], ["c", "d"]], ["e"]])
    interview = Interview(script, 2)
    said = interview.sample(
        "first", ["p", "q"], num_samples=2, max_new_tokens=5, temperature=0.5, stop=("\n",)
    )
    assert said == [["a", "b"], ["c", "d"]]
    assert interview.ask("second", ["r"], max_new_tokens=7, temperature=0.0, about=[1]) == ["e"]
    first, second = script.calls
    assert (first.num_samples, first.max_new_tokens, first.temperature) == (2, 5, 0.5)
    assert (second.num_samples, second.max_new_tokens, second.temperature) == (1, 7, 0.0)
    assert (first.stop, second.stop) == (("\n",), ())
    assert interview.solved(["x", None], [None, "why"]) == Solved(
        (
            Solution("x", (Pass("first", "p", ("a", "b")),)),
            Solution(None, (Pass("first", "q", ("c", "d")), Pass("second", "r", ("e",))), "why"),
        ),
        num_calls=2,
    )
    assert interview.solved(["x", None]).answers == ["x", None]


def test_nothing_to_ask_is_refused():
    with pytest.raises(ValueError, match=r"^questions=\(\): there is nothing to ask"):
        Interview(Script([]), 0)


def test_a_completer_that_gives_texts_for_lists_is_refused():
    with pytest.raises(ValueError, match=r"^complete: gave a text for each prompt"):
        Interview(lambda prompts, **_: ["6"] * len(prompts), 2).ask(
            "answer", ["a", "b"], max_new_tokens=5, temperature=0.0
        )


@pytest.mark.parametrize("said", [[], [["a"]], [["a"], ["b", "c"]], [["a"], ["b"], ["c"]]])
def test_a_completer_that_gives_another_number_is_refused(said):
    with pytest.raises(ValueError, match=r"^complete: gave .* completions of 2 prompts; it must"):
        Interview(lambda *_, **__: said, 2).ask("p", ["a", "b"], max_new_tokens=1, temperature=0.0)


def test_an_answer_for_each_question():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        Interview(Script([]), 2).solved(["x"])
