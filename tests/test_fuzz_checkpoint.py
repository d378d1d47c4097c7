"""The reader of TensorFlow checkpoints under damage and attack: a short fuzzing, and what longer ones left behind."""

import json

import pytest
from fuzz_checkpoint import ATTACK_MULTIPLE, CORPUS, Memory, attacked, fuzz, mutant

from zoo.tf_checkpoint import Checkpoint, CheckpointError

EXPECTED: dict[str, str] = json.loads((CORPUS / "expected.json").read_text("utf-8"))


def test_two_thousand_mutants() -> None:
    """The full run is ``python tests/fuzz_checkpoint.py``."""
    findings = fuzz(2000, seed=0)
    assert not findings.wrong, findings.summary()
    assert findings.mutants == sum(findings.ends.values()) == 2000
    assert len(findings.ends) > 20  # it reaches most of what the reader says
    assert findings.ends[""] > 100


def test_a_mutant_is_a_function_of_its_number() -> None:
    assert all(mutant(3, number) == mutant(3, number) for number in range(50))
    assert mutant(3, 1) != mutant(4, 1)


def test_attacks_take_a_bounded_multiple_of_their_size() -> None:
    for attack in attacked(1 << 15):
        assert attack.peak < ATTACK_MULTIPLE * attack.size, attack


def test_the_corpus_is_all_expected() -> None:
    assert sorted(EXPECTED) == sorted(path.name for path in CORPUS.glob("*.index"))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_corpus_ends_in_one_typed_error(name: str) -> None:
    index = CORPUS / name
    shards = [Memory(path.read_bytes()) for path in sorted(CORPUS.glob(f"{index.stem}.data-*"))]
    with pytest.raises(CheckpointError) as caught:
        list(Checkpoint(index.read_bytes(), lambda number, _: shards[number]).values())
    assert EXPECTED[name] in str(caught.value)
    assert str(caught.value).isprintable()
