"""reasoning-gym: its datasets as questions, and this project's tasks judged inside it."""

import json
import subprocess
import sys

import pytest

rg = pytest.importorskip("reasoning_gym")

from reasoning.data.corpora import load_corpus  # noqa: E402
from reasoning.data.gym import gym_name, gym_questions, register_with_gym  # noqa: E402
from reasoning.data.tasks import TASKS, make_task  # noqa: E402
from reasoning.data.tasks.base import SPLITS, split_of  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_with_gym()
    register_with_gym()  # reasoning-gym itself refuses a name twice


def test_questions_are_the_items_of_the_dataset():
    questions = gym_questions("chain_sum", size=5, seed=3, min_terms=2, max_terms=2)
    items = rg.create_dataset("chain_sum", size=5, seed=3, min_terms=2, max_terms=2)
    assert [(q.question, q.answer) for q in questions] == [
        (item["question"], item["answer"]) for item in items
    ]
    assert [q.id for q in questions] == [f"gym/chain_sum/3/{i}" for i in range(5)]
    assert all(q.kind == "number" and q.traces == () for q in questions)
    assert all(q.kind == "text" for q in gym_questions("spell_backward", size=5, seed=0))


def test_where_exact_comparison_differs_from_the_datasets_own_judge():
    """What the module's docstring says of `score_answer`, in case a later version differs."""
    dataset = rg.create_dataset("gcd", size=1, seed=0)
    gold = dataset[0]["answer"]
    assert 0 < dataset.score_answer(f"not {gold}", dataset[0]) < 1  # part of the reward
    dataset = rg.create_dataset("countdown", size=1, seed=0)
    assert dataset.score_answer("1 + 1", dataset[0]) == 0.05  # for a wrong answer
    assert dataset.score_answer(f"({dataset[0]['answer']})", dataset[0]) == 1.0  # not the gold one


def test_a_corpus_of_gym_shares_no_question_between_splits():
    corpus = load_corpus("gym", dataset="chain_sum", size=300, seed=0, max_terms=2, max_digits=1)
    found = {split: {q.question for q in getattr(corpus, split)} for split in SPLITS}
    assert corpus.name == "gym/chain_sum" and all(found.values())
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    assert sum(len(getattr(corpus, split)) for split in SPLITS) == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(), "dataset='': reasoning-gym refuses it with size=1000, seed=0, {} (Dataset '' not "
                 "registered)."),
        (dict(dataset="chain_sum", size=0), "dataset='chain_sum': reasoning-gym refuses it with "
                                            "size=0, seed=0, {} (size must be positive)."),
        (dict(dataset="chain_sum", terms=3),
         "dataset='chain_sum': reasoning-gym refuses it with size=1000, seed=0, {'terms': 3} ("
         "ChainSumConfig.__init__() got an unexpected keyword argument 'terms')."),
        (dict(dataset="rubiks_cube", size=1), "dataset='rubiks_cube': item 0 has no gold answer to "
                                              "compare with; take a dataset that has one."),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message):
    with pytest.raises(ValueError) as error:
        load_corpus("gym", **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("preset", TASKS)
def test_every_task_is_a_dataset_that_judges_by_the_tasks_verifier(preset):
    dataset = rg.create_dataset(gym_name(preset), size=20, seed=4)
    task = make_task(preset)
    for index, item in enumerate(dataset):
        problem = task.sample(4, index)
        assert item["question"].endswith(f"\n{task.prompt(problem)}")
        assert item["metadata"]["split"] == split_of(task.key(problem))
        assert dataset.score_answer(f" {item['answer']}\n", item) == 1.0
        for strategy in task.strategies:
            trace = task.trace(problem, strategy)
            assert trace is None or dataset.score_answer(trace.answer, item) == 1.0
        for wrong in (None, "", "the", f"{item['answer']} 1", item["question"]):
            assert dataset.score_answer(wrong, item) == 0.0
    assert len(dataset) == index + 1 == 20


def test_a_stored_entry_is_judged_without_its_dataset():
    arguments = {"group": "S4", "length": 5}
    dataset = rg.create_dataset(gym_name("group_words"), size=3, seed=9, arguments=arguments)
    item = json.loads(json.dumps(dataset[2]))
    assert item == dataset[2] and "the group S4" in item["question"]
    score = rg.get_score_answer_fn(item["metadata"]["source_dataset"])  # of the default arguments
    assert score(item["answer"], item) == 1.0
    others = {str(n) for n in range(24)} - {item["answer"]}
    assert all(score(other, item) == 0.0 for other in others)


def test_a_task_composes_with_the_others():
    specs = [
        rg.composite.DatasetSpec(name, 1, {}) for name in ("chain_sum", gym_name("countdown"))
    ]
    dataset = rg.create_dataset("composite", size=10, seed=0, datasets=specs)
    items = [dataset[index] for index in range(10)]
    assert len({item["metadata"]["source_dataset"] for item in items}) == 2
    assert all(dataset.score_answer(item["answer"], item) == 1.0 for item in items)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(size=0), "size=0: must be at least 1"),
        (dict(arguments={"size": 1}), "size=1: countdown needs at least 2 numbers"),
    ],
)
def test_a_dataset_refuses_what_its_task_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        rg.create_dataset(gym_name("countdown"), seed=0, **arguments)


def test_without_the_extra_a_sentence_says_what_to_install():
    program = """
import sys
sys.modules["reasoning_gym"] = None  # as if it were not installed
from reasoning.data.corpora import load_corpus
try:
    load_corpus("gym", dataset="chain_sum")
except ValueError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.startswith("corpus='gym': reasoning-gym is not installed (")
    assert result.stdout.endswith("); pip install '.[gym]'.\n"), result.stderr
