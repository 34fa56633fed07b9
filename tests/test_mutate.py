"""bench/mutate.py: names are its mutants' own, its sample is fixed, its lists do not outlive what they name."""

from conftest import ROOT

from bench import mutate
from bench.reach import Reach


def test_every_equivalent_mutant_is_one_and_every_name_is_its_own():
    """Or a line that was changed would leave its excuse behind."""
    found = mutate.candidates()
    assert len({(candidate.file, candidate.name) for candidate in found}) == len(found)
    assert mutate.equivalent().keys() <= {candidate.name for candidate in found}


def test_a_sample_is_the_beginning_of_a_larger_one():
    few, more = (mutate.sampled(mutate.candidates(), size) for size in (2, 5))
    assert [candidate for candidate in more if candidate in few] == few
    assert {candidate.row for candidate in few} == {candidate.row for candidate in more}


def test_the_functions_that_are_promised_most_for_exist():
    for file, names in mutate.PROMISED.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(f"def {name}(" in text for name in names)


def test_reach_knows_functions_by_file_and_leaves_libraries_out():
    codes = {mutate.candidates.__code__, Reach.names.__code__, test_a_sample_is_the_beginning_of_a_larger_one.__code__}
    outside = {mutate.json.dumps.__code__}
    tests = "tests/test_mutate.py:test_a_sample_is_the_beginning_of_a_larger_one"
    assert Reach(ROOT).names(codes | outside) == ["bench/mutate.py:candidates", "bench/reach.py:names", tests]
