"""reasoning-gym both ways: its datasets as questions, and this project's tasks as its datasets.

    questions = gym_questions("chain_sum", size=1000, seed=0, max_terms=3)

    register_with_gym()
    dataset = reasoning_gym.create_dataset("reasoning_countdown", size=100, seed=0)
    dataset.score_answer("7 * 5 = 35 , 35 + 1 = 36", dataset[0])        # 0.0 or 1.0

The extra [gym]. Questions are compared with their gold answers as their `kind` says, which differs
from the `score_answer` of reasoning-gym 0.1:

- In a third of its datasets an answer that merely contains the gold one earns a part of the reward,
  and in some a wrong one earns 0.01 to 0.05; here both are wrong.
- In many (countdown, word_ladder, n_queens, sokoban, ...) several answers are right and the gold
  one is an example; here the others are wrong, so take those with care.
- Some of its judges run code in the answer, by `eval` or sympy's parser (string_insertion,
  spiral_matrix, binary_matrix, n_queens, countdown, puzzle24, ...): never show one what a policy
  wrote. Nothing here does.

Item i is made from seed + i, so the seeds 0 and 1 share all items but one. A corpus is split by the
text of the question, so that its splits share none.
"""

import dataclasses
from typing import Any, ClassVar

from reasoning.data.questions import Question, kind_of
from reasoning.data.tasks import TASKS, make_task
from reasoning.data.tasks.base import split_of

try:
    import reasoning_gym
    from reasoning_gym.dataset import ProceduralDataset
except ImportError as missing:
    raise ValueError(
        f"corpus='gym': reasoning-gym is not installed ({missing}); pip install '.[gym]'."
    ) from missing

# What a model that does not know the task is told before the prompt, by the task's name.
INSTRUCTIONS = {
    "countdown": (
        "Make the target from all the numbers, each used once, with +, - and *; every result must "
        "be a positive integer of at most {max_number}. Answer with the operations in order and "
        "nothing else, as in `7 * 5 = 35 , 35 + 1 = 36` for `1 5 7 make 36 :`."
    ),
    "group_words": (
        "Multiply the permutations from left to right. They are those of the group {group}, "
        "numbered from 0 in lexicographic order of their images; `a b` means first a, then b. "
        "(Cn is the rotations of n points.) Answer with the number of the product and nothing else."
    ),
    "expressions": (
        "Calculate modulo {modulus}. Answer with the value, a number from 0 to {max_number}, and "
        "nothing else."
    ),
    "circuits": (
        "Evaluate the Boolean circuit. Its inputs come first, as `2 = 1`, then its gates, as "
        "`7 xor 2 5`: gate 7 is the xor of 2 and 5. Answer with the value of the last gate, 0 or "
        "1, and nothing else."
    ),
    "squaring": (
        "Calculate the power modulo the prime; `7 ^ 2 ^ 5` is 7 squared 5 times. Answer with a "
        "number below the prime and nothing else."
    ),
    "multiplication": (
        "Multiply. Every number is written digit by digit, the least significant first and with "
        "spaces between them: `7 4` is 47. Answer with the product in the same way and nothing "
        "else, as in `1 8 0 1` for `3 2 * 7 4 :`."
    ),
    "paths": (
        "Each pair of numbers is an edge of an undirected graph. Find a path between the two nodes "
        "with as few edges as possible. Answer with its nodes in order and nothing else, as in "
        "`2 5 3` for `2 5 , 2 7 , 3 5 from 2 to 3 :`."
    ),
    "knights": (
        "Each of {people} people is a knight, whose statement is true, or a knave, whose statement "
        "is false. Answer with the kind of each person in order and nothing else, as in "
        "`knave knight` for `A : B is knave , B : A is knave or B is knave :`."
    ),
}


def gym_questions(dataset: str, size: int, seed: int, **config: Any) -> tuple[Question, ...]:
    """The items 0 to size - 1 of a reasoning-gym dataset, without traces.

    Args:
      dataset: its registered name, as "chain_sum".
      size: how many.
      seed: of the first item.
      config: fields of the dataset's own configuration.

    Returns:
      Questions of one kind: "number" if every answer is one, else "text".

    Raises:
      ValueError: no such dataset, a setting that it refuses, or an item without a gold answer.
    """
    try:
        items = reasoning_gym.create_dataset(dataset, size=size, seed=seed, **config)
    except (AssertionError, TypeError, ValueError) as error:  # its ways to refuse
        raise ValueError(
            f"dataset={dataset!r}: reasoning-gym refuses it with size={size}, seed={seed}, "
            f"{config} ({error})."
        ) from error
    rows = [items[index] for index in range(size)]
    golds = [row["answer"] for row in rows]
    for index, gold in enumerate(golds):
        if not isinstance(gold, str) or not gold.strip():
            raise ValueError(
                f"dataset={dataset!r}: item {index} has no gold answer to compare with; take a "
                "dataset that has one."
            )
    kind = kind_of(golds)
    return tuple(
        Question(f"gym/{dataset}/{seed}/{index}", row["question"], gold, kind)
        for index, (row, gold) in enumerate(zip(rows, golds, strict=True))
    )


@dataclasses.dataclass
class TaskConfig:
    """Configuration of a task's dataset.

    Attributes:
      size: how many items it seems to hold.
      seed: of its items; None: another one each time.
      arguments: of the task, as `make_task` takes them.
    """

    size: int = 500
    seed: int | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def validate(self) -> None:
        """Refuse arguments that the task refuses later, and here a size below 1 (ValueError)."""
        if self.size < 1:
            raise ValueError(f"size={self.size}: must be at least 1.")


class TaskDataset(ProceduralDataset):
    """A preset of this project's tasks; an entry says which problem it is, so that any can judge.

    `metadata["split"]` is the split that the problem belongs to here: train on no "test" entry.
    """

    preset: ClassVar[str]

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config=config, seed=config.seed, size=config.size)
        self.task = make_task(self.preset, **config.arguments)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """The problem at a place of the task's stream, which is of any split."""
        problem = self.task.sample(self.seed, idx)
        instruction = INSTRUCTIONS[self.task.name].format_map(vars(self.task))
        traces = (self.task.trace(problem, strategy) for strategy in self.task.strategies)
        return {
            "question": f"{instruction}\n{self.task.prompt(problem)}",
            "answer": next(trace.answer for trace in traces if trace is not None),
            "metadata": {
                "source_dataset": gym_name(self.preset),
                "source_index": idx,
                "seed": self.seed,
                "arguments": self.config.arguments,
                "split": split_of(self.task.key(problem)),
            },
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1.0 if the task's verifier finds the answer right, else 0.0; no partial credit."""
        about = entry["metadata"]
        task = make_task(self.preset, **about["arguments"])
        problem = task.sample(about["seed"], about["source_index"])
        words = answer.split() if isinstance(answer, str) else []
        return float(task.verify(problem, " ".join(words)).correct)


def gym_name(preset: str) -> str:
    """The name of a task's preset in reasoning-gym, which has a countdown of its own."""
    return f"reasoning_{preset}"


def register_with_gym() -> None:
    """Register every preset of `reasoning.data.tasks.TASKS`; a second call changes nothing."""
    for preset in TASKS:
        if gym_name(preset) not in reasoning_gym.factory.DATASETS:
            dataset = type(f"TaskDataset_{preset}", (TaskDataset,), {"preset": preset})
            reasoning_gym.register_dataset(gym_name(preset), dataset, TaskConfig)
