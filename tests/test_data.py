"""Questions from files and from known data sets: local copies with exactly the columns of the real ones."""

import json

import pytest

from support import data
from support.data import load_questions
from support.errors import UserError

# One row of each data set as it is on the hub (columns that nobody reads are kept where a name could be confused).
ROWS = {
    "gsm8k": {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    "gsm8k-test": {"question": "A thousand and one?", "answer": "It is\n#### 1,001"},
    "math": {
        "problem": "Half of one?", "level": "Level 1", "type": "Prealgebra",
        "solution": "First \\boxed{1}; then halve: $\\boxed{\\frac{1}{2}}$.",
    },
    "deepmath": {
        "question": "Is it so?", "final_answer": "Yes", "difficulty": 7.0, "topic": "Logic", "r1_solution_1": "...",
    },
    "deepscaler": {"problem": "Find $x$.", "answer": "3", "solution": "..."},
    "aime24": {"id": 60, "problem": "Every morning", "solution": "...", "answer": "204", "url": "", "year": "2024"},
    "aime25": {"problem": "Find the sum", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "Cities A and B", "answer": 27.0, "url": ""},
    "math500": {
        "problem": "Convert", "solution": "...", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "level": 2,
        "subject": "Precalculus", "unique_id": "test/precalculus/807.json",
    },
    "minerva": {"question": "Each of the two Magellan telescopes", "answer": "0.16"},
    "olympiadbench": {
        "id": 1606, "question": "Xenia and Sergey", "solution": ["..."], "final_answer": ["$2$", "$-3$"],
        "context": None, "modality": "Text-only", "is_multiple_answer": True, "unit": None, "language": "English",
    },
}  # fmt: skip
ANSWERS = {
    "gsm8k": "4", "gsm8k-test": "1,001", "math": "\\frac{1}{2}", "deepmath": "Yes", "deepscaler": "3", "aime24": "204",
    "aime25": "70", "amc23": "27.0", "math500": "\\left( 3, \\frac{\\pi}{2} \\right)", "minerva": "0.16",
    "olympiadbench": "2, -3",
}  # fmt: skip


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_a_local_copy_of_a_known_data_set_is_read_by_its_columns(name, suffix, tmp_path):
    (problem,) = load_questions(f"{name}:{write(tmp_path / f'copy.{suffix}', [ROWS[name]])}")
    source = data.SOURCES[name]
    assert (problem.text, problem.reference) == (ROWS[name][source.question], ANSWERS[name])
    assert data.label(f"{name}:{tmp_path}/copy.{suffix}") == name


def test_every_known_data_set_is_tested_here():
    assert set(ROWS) == {name for name in data.SOURCES if not name.endswith(data.HELD_OUT)}


def test_a_folder_as_the_hub_lays_it_out_is_a_local_copy(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", [ROWS["deepscaler"]])
    assert load_questions(f"deepscaler:{tmp_path}")[0].reference == "3"


def test_deepmath_is_filtered_and_split_and_the_halves_share_no_question(tmp_path, monkeypatch):
    rows = [ROWS["deepmath"] | {"question": f"Q{i % 900}", "difficulty": 4.0 + i % 6} for i in range(1800)]
    path = write(tmp_path / "deepmath.jsonl", rows)
    train, held_out = load_questions(f"deepmath:{path}"), load_questions(f"deepmath-held-out:{path}")
    hard = {row["question"] for row in rows if row["difficulty"] >= 7}
    assert {p.text for p in train} | {p.text for p in held_out} == hard and len(hard) == 450
    assert len(train) == 405 and len(held_out) == 45  # a tenth, when there are fewer than the paper's numbers
    assert load_questions(f"deepmath:{path}") == train
    assert data.SOURCES["deepmath"].sizes == data.SOURCES["deepscaler"].sizes == (5_000, 500)


def test_offline_and_not_cached_is_one_line_that_says_what_to_do(monkeypatch, tmp_path):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        load_questions("deepmath")
    text = str(error.value)
    assert "hf download zwhe99/DeepMath-103K" in text and "deepmath:DeepMath-103K" in text and "\n" not in text


@pytest.mark.parametrize(
    ("path", "complaint"),
    [("nowhere.jsonl", "no such file.*deepmath"), ("aime24:nowhere.jsonl", "aime24: cannot load nowhere.jsonl")],
)
def test_what_is_not_there_is_said(path, complaint, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=complaint):
        load_questions(path)


def test_other_columns_are_named(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"problem": "?", "reply": "1"}])
    with pytest.raises(UserError, match="no column `answer`.*reply"):
        load_questions(f"aime25:{path}")
    with pytest.raises(UserError, match="x.jsonl, line 1: no field `question`"):
        load_questions(path)


def test_parquet_and_jsonl_of_ones_own_are_the_same(tmp_path):
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "answer": "3"}]
    both = [load_questions(write(tmp_path / f"mine.{suffix}", rows)) for suffix in ("jsonl", "parquet")]
    assert both[0] == both[1] and [p.id for p in both[0]] == ["mine-1", "mine-2"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no questions"),
        ('{"question": "a", "answer": 1}\n{"question"', "line 2: not JSON"),
        ("[1]", "line 1: no field `question`"),
        ('{"id": 1, "question": "a", "answer": 1}\n{"id": 1, "question": "b", "answer": 1}', "the same `id`"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(text, complaint, tmp_path):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_questions(str(tmp_path / "bad.jsonl"))
