"""Questions from files and from known data sets: local copies with exactly the columns of the real ones."""

import datetime
import decimal
import gzip
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


# ---------------------------------------------------------------- cells, encodings and files, as people have them

GOOD = {"question": "3, 4", "answer": "7"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("answer", None, "is null"),
        ("question", None, "is null"),
        ("answer", [3, 4], "holds a list.*write a list as one text"),
        ("answer", {"value": 3}, "holds an object"),
        ("question", ["3", "4"], "holds a list"),
        ("question", 7, "holds a number, and a question is a text"),
        ("question", "", "is empty"),
        ("question", " \n\t", "is empty"),
        ("question", "\ufeff\u200b", "is empty"),
        ("answer", "", "is empty"),
        ("answer", float("nan"), "is nan, which is no number"),
        ("answer", float("inf"), "is inf, which is no number"),
    ],
)
def test_a_cell_that_is_no_text_is_refused_with_its_row_and_column(suffix, column, value, complaint, tmp_path):
    path = write(tmp_path / f"mine.{suffix}", [{column: value, "question" if column == "answer" else "answer": "1"}])
    with pytest.raises(UserError, match=f"mine.{suffix}, (line|row) 1: `{column}` {complaint}") as refusal:
        load_questions(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("answer", b"2", "holds bytes"),
        ("question", b"1 + 1?", "holds bytes"),
        ("answer", datetime.date(2026, 1, 2), "holds a date"),
        ("answer", decimal.Decimal("NaN"), "no number"),
    ],
)
def test_what_only_parquet_can_hold(column, value, complaint, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_rows", lambda file: [("mine.parquet, row 1", GOOD | {column: value})])
    (tmp_path / "mine.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=f"mine.parquet, row 1: `{column}` .*{complaint}"):
        load_questions(str(tmp_path / "mine.parquet"))


def test_bytes_of_a_real_parquet_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="mine.parquet, row 1: `answer` holds bytes"):
        load_questions(write(tmp_path / "mine.parquet", [GOOD | {"answer": b"1"}]))


@pytest.mark.parametrize(
    ("value", "reference"),
    [(7, "7"), (27.0, "27.0"), (0.1, "0.1"), (True, "True"), ("7", "7"), (decimal.Decimal("1.50"), "1.50")],
)
def test_numbers_are_answers(value, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_rows", lambda file: [("mine.parquet, row 1", GOOD | {"answer": value})])
    (tmp_path / "mine.parquet").write_bytes(b"")
    assert load_questions(str(tmp_path / "mine.parquet"))[0].reference == reference


def test_an_empty_answer_is_allowed_where_a_reward_of_ones_own_looks_elsewhere(tmp_path):
    path = write(tmp_path / "mine.jsonl", [GOOD | {"answer": ""}])
    assert load_questions(path, empty_answers=True)[0].reference == ""
    with pytest.raises(UserError, match="is null"):
        load_questions(write(tmp_path / "mine.jsonl", [GOOD | {"answer": None}]), empty_answers=True)


def test_a_missing_id_is_numbered(tmp_path):
    rows = [GOOD | {"id": None}, GOOD | {"id": 5}, GOOD]
    assert [q.id for q in load_questions(write(tmp_path / "mine.jsonl", rows))] == ["mine-1", "5", "mine-3"]


def test_rows_of_a_known_data_set_without_an_answer_are_counted(tmp_path, capsys):
    rows = [ROWS["aime25"], ROWS["aime25"] | {"answer": None, "problem": "b"}, ROWS["aime25"] | {"problem": None}]
    assert len(load_questions(f"aime25:{write(tmp_path / 'copy.parquet', rows)}")) == 1
    assert "aime25: 2 of 3 rows have no question or no answer and are left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="aime25, row 1: `answer` holds bytes"):
        load_questions(f"aime25:{write(tmp_path / 'bytes.parquet', [ROWS['aime25'] | {'answer': b'70'}])}")


LINE = '{"question": "Caf\u00e9: 3, 4.", "answer": "7"}\n'
TWO = LINE + LINE.replace("3", "5")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_read_in_every_encoding(encoding, tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(TWO.encode(encoding))
    assert [q.text for q in load_questions(str(tmp_path / "mine.jsonl"))] == ["Café: 3, 4.", "Café: 5, 4."]


def test_joined_files_may_have_a_byte_order_mark_in_each(tmp_path):
    (tmp_path / "mine.jsonl").write_bytes(LINE.encode("utf-8-sig") + LINE.encode("utf-8-sig") + "\ufeff\r\n".encode())
    assert len(load_questions(str(tmp_path / "mine.jsonl"))) == 2


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift-jis"])
def test_another_encoding_is_refused_with_the_line(encoding, tmp_path):
    text = '{"question": "a", "answer": 1}\n' + LINE.replace("é", "é" if encoding != "shift-jis" else "漢")
    (tmp_path / "mine.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="mine.jsonl, line 2: byte 0x.. is no UTF-8; save the file as UTF-8") as refusal:
        load_questions(str(tmp_path / "mine.jsonl"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_ends_at_a_newline_only(character, tmp_path):
    text = json.dumps({"question": f"one{character}two", "answer": "7"}, ensure_ascii=False) + "\r\n"
    (tmp_path / "mine.jsonl").write_bytes((text + TWO).encode())
    first, *_ = load_questions(str(tmp_path / "mine.jsonl"))
    assert first.text == f"one{character}two"


@pytest.mark.parametrize("name", ["mine.jsonl.gz", "mine.gz", "mine.jsonl"])
def test_gzip_is_unpacked_whatever_it_is_called(name, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(TWO.encode("utf-8-sig")))
    assert [q.id for q in load_questions(str(tmp_path / name))] == ["mine-1", "mine-2"]
    assert data.label(str(tmp_path / name)) == "mine"
    (tmp_path / name).write_bytes(gzip.compress(TWO.encode())[:-12])
    with pytest.raises(UserError, match="cannot be read"):
        load_questions(str(tmp_path / name))


@pytest.mark.parametrize("name", ["mine.PARQUET", "mine.Parquet", "mine"])
def test_parquet_is_known_by_what_it_holds(name, tmp_path):
    write(tmp_path / "mine.parquet", [GOOD])
    (tmp_path / "mine.parquet").rename(tmp_path / name)
    assert load_questions(str(tmp_path / name))[0].reference == "7"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("mine.parquet", POINTER.encode(), "git-lfs pointer.*git lfs pull"),
        ("mine.jsonl", POINTER.encode(), "git-lfs pointer.*git lfs pull"),
        ("mine.parquet", b"", "no parquet file"),
        ("mine.parquet", b"PAR1 and then it broke off", "no parquet file, or not a whole one"),
        ("mine.jsonl", b"PK\x03\x04\xff\xfe", "line 1: byte 0xff"),
        ("mine.jsonl", b'{"question": "a", "answer": ' + b"1" * 5000 + b"}", "line 1: JSON that cannot be read"),
        ("mine.jsonl", b"[" * 200_000, "line 1: JSON that cannot be read"),
        ("mine.jsonl", rb'{"question": "bad \ud83d half", "answer": "7"}', "line 1: `question` holds half of a char"),
        ("mine.jsonl", rb'{"question": "a", "answer": "\udc00"}', "line 1: `answer` holds half of a char"),
        ("mine.jsonl", rb'{"question": "a", "answer": "1", "id": "\udc00"}', "line 1: `id` holds half of a char"),
    ],
)
def test_a_file_that_cannot_be_read_gets_one_line(name, content, complaint, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{complaint}") as refusal:
        load_questions(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


# ------------------------------------------------------------------------------------------------------ names, digests


def test_files_of_one_name_keep_apart():
    assert data.labelled(("tiny/hard.jsonl", "tiny/ood.jsonl")) == {"hard": "tiny/hard.jsonl", "ood": "tiny/ood.jsonl"}
    assert list(data.labelled(("a/test.jsonl", "b/test.parquet", "c/x.jsonl"))) == [
        "a/test.jsonl",
        "b/test.parquet",
        "x",
    ]
    assert list(data.labelled(("aime24:one", "aime24:two"))) == ["aime24:one", "aime24:two"]
    with pytest.raises(UserError, match="a.jsonl: given twice"):
        data.labelled(("a.jsonl", "a.jsonl"))


def test_the_digest_of_questions_sees_every_change(tmp_path):
    rows = [GOOD, {"question": "5, 6", "answer": "11", "level": 3}]
    changes = [
        rows[::-1], rows[:1], [GOOD | {"answer": "8"}, rows[1]], [GOOD | {"question": "3, 4."}, rows[1]],
        [GOOD, rows[1] | {"level": 4}], [GOOD | {"id": "x"}, rows[1]], [GOOD | {"solution": "Long. " * 20}, rows[1]],
    ]  # fmt: skip
    found = [data.digest(load_questions(write(tmp_path / "mine.jsonl", some))) for some in [rows, *changes]]
    assert len(set(found)) == len(found)
    assert data.digest(load_questions(write(tmp_path / "mine.jsonl", rows))) == found[0]
