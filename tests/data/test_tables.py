import codecs
import csv
import json
import os
import string
from pathlib import Path

import pytest
from data_files import write, write_parquet
from hypothesis import given
from hypothesis import strategies as st

from spark_rl.data.tables import LineTable, Table, lookup, open_tables


def open_one(path, **keywords) -> Table:
    (table,) = open_tables(str(path), **{"split": "train", "subset": None, **keywords})
    return table


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table: Table) -> list:
    return [table[index] for index in range(len(table))]


def refusal(path, **keywords) -> str:
    with pytest.raises(ValueError) as caught:
        open_one(path, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bad_row(table: Table, index: int) -> str:
    with pytest.raises(ValueError) as caught:
        table[index]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8], ids=["", "BOM"])
def test_jsonl_with_blank_lines_and_without_a_last_line_end(tmp_path, start, end):
    lines = ['{"a": 1}', "", "  ", '{"a": "ä"}', '{"a": 3}']
    table = open_one(put(tmp_path, "set.jsonl", start + end.join(lines).encode()))
    assert rows(table) == [{"a": 1}, {"a": "ä"}, {"a": 3}]
    assert [table.where(i) for i in (2, 0, 1)] == [f"{tmp_path / 'set.jsonl'}, row {line}" for line in (5, 1, 4)]
    assert (table.name, table.place) == ("set", str(tmp_path / "set.jsonl"))


@given(
    values=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.integers() | st.none()), min_size=1),
    blank=st.sampled_from(["\n", "\n\n", "\r\n", "\n \n"]),
    escaped=st.booleans(),
)
def test_jsonl_gives_what_was_written_in_any_order(tmp_path_factory, values, blank, escaped):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(blank.join(json.dumps(value, ensure_ascii=escaped) for value in values).encode())
    table = LineTable(path)
    assert [table[i] for i in reversed(range(len(table)))] == values[::-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", "not valid JSON (Expecting property name"),
        ('{"a": 1} {"a": 2}', "not valid JSON (Extra data at character 10)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "a number has more than 4300 digits"),
        (r'{"a": "half a \ud83d smiley"}', "surrogate pair"),
        (r'{"a": [{"\uDC00": 1}]}', "surrogate pair"),
        (b'{"a": "caf\xe9"}', "is not UTF-8 text at byte 11"),
        ('{"a": "' + "x" * (5 * 2**20) + '"}', "is longer than 4 MiB"),
    ],
    ids=str,
)
def test_a_bad_line_says_why_and_leaves_the_others(tmp_path, line, words):
    line = line if isinstance(line, bytes) else line.encode()
    table = open_one(put(tmp_path, "set.jsonl", b'{"a": 1}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n'))
    assert words in bad_row(table, 1)
    assert (table[0], table[2]) == ({"a": 1}, {"a": "😀"})


def test_a_json_file_may_be_an_array_or_lines(tmp_path):
    array = open_one(put(tmp_path, "array.json", b'\xef\xbb\xbf\n [\n {"a": 1},\n\n {"a": 2}]'))
    lines = open_one(put(tmp_path, "lines.json", '{"a": 1}\n{"a": 2}\n'))
    assert rows(array) == rows(lines) == [{"a": 1}, {"a": 2}]
    assert array.where(1) == f"{tmp_path / 'array.json'}, row 2"


def test_half_a_surrogate_pair_in_an_array_costs_its_row_only(tmp_path):
    table = open_one(put(tmp_path, "array.json", r'[{"a": "\ud83d"}, {"a": 1}]'))
    assert "surrogate pair" in bad_row(table, 0)
    assert table[1] == {"a": 1}


def test_one_json_object_over_many_lines_is_no_row(tmp_path):
    table = open_one(put(tmp_path, "set.json", json.dumps({"rows": [{"prompt": "a"}]}, indent=1)))
    assert "write every row as one object on one line" in bad_row(table, 0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("set.jsonl", b"", "holds no rows"),
        ("set.jsonl", b"\n\n", "holds no rows"),
        ("set.json", b"[]", "holds no rows"),
        ("set.json", b"[1, ", "not valid JSON"),
        ("set.json", b"[\xff]", "is not UTF-8 text at byte 2"),
        ("set.csv", b"", "holds no rows"),
        ("set.csv", b"prompt,answer\n", "holds no rows"),
        ("set.csv", b"prompt,answer\n,\n \n", "holds no rows"),
        ("set.csv", "prompt,answer\na,café".encode("latin-1"), "is not UTF-8 text after byte 14"),
        ("set.csv", "prompt,answer\n".encode("utf-16"), "is not UTF-8 text after byte 0"),
        ("set.csv", b"prompt,answer,prompt\na,b,c\n", "the header names 'prompt' twice; rename"),
        ("set.txt", b"a", "cannot tell its format; name a file that ends with .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, words):
    path = put(tmp_path, name, content)
    assert refusal(path).startswith(f"{path}: {words}")


def test_a_binary_file_is_refused_row_by_row(tmp_path):
    assert "is not UTF-8 text at byte 1" in bad_row(open_one(put(tmp_path, "set.jsonl", b"\xff\xfe")), 0)


# ------------------------------------------------------------------------------------------------ CSV


def test_csv_with_quoted_line_breaks_commas_and_quotes(tmp_path):
    content = 'prompt, answer ,id\n"one,\ntwo ""three""\n\nfour",5,\n\n , ,\n"six",7,x\n'
    table = open_one(put(tmp_path, "set.csv", content))
    first = {"prompt": 'one,\ntwo "three"\n\nfour', "answer": "5", "id": None}
    assert rows(table) == [first, {"prompt": "six", "answer": "7", "id": "x"}]
    assert table.where(1) == f"{tmp_path / 'set.csv'}, row 2", "rows, since a row has many lines"


@pytest.mark.parametrize(("name", "mark"), [("set.csv", ";"), ("set.csv", "\t"), ("set.tsv", "\t")])
def test_other_marks_between_fields_are_read_off_the_header(tmp_path, name, mark):
    table = open_one(put(tmp_path, name, f"prompt{mark}answer\nWhat, is it?{mark}5\n"))
    assert rows(table) == [{"prompt": "What, is it?", "answer": "5"}]


def test_csv_as_excel_writes_it(tmp_path):
    table = open_one(put(tmp_path, "set.csv", codecs.BOM_UTF8 + b'"prompt","answer"\r\n"a\r\nb",1\r\n'))
    assert rows(table) == [{"prompt": "a\r\nb", "answer": "1"}]


def test_csv_as_pandas_writes_it(tmp_path):
    table = open_one(put(tmp_path, "set.csv", ",prompt,answer\n0,a,1\n1,b,\n"))
    assert rows(table) == [{"": "0", "prompt": "a", "answer": "1"}, {"": "1", "prompt": "b", "answer": None}]


@pytest.mark.parametrize("row", ["a", "a,b,c", "What, then?,4"])
def test_csv_rows_of_another_length_are_bad(tmp_path, row):
    table = open_one(put(tmp_path, "set.csv", f"prompt,answer\n{row}\na,b\n"))
    assert f"has {row.count(',') + 1} fields where the header has 2; put quotes around" in bad_row(table, 0)
    assert table[1] == {"prompt": "a", "answer": "b"}


def test_an_unterminated_quote_is_named_where_it_begins(tmp_path):
    path = put(tmp_path, "set.csv", 'prompt,answer\na,b\n"c,d\n' + "e,f\n" * 50)
    assert refusal(path).startswith(f"{path}, line 3: not valid CSV from here on (unexpected end of data)")


def test_a_huge_csv_field_is_refused_and_not_read(tmp_path):
    path = put(tmp_path, "set.csv", "prompt,answer\n" + "x" * (5 * 2**20) + ",1\n")
    assert "line 2: not valid CSV from here on (field larger than field limit" in refusal(path)


_FIELD = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('",\n\t\x0b\x0c\x1c\x85\u2028'))


@given(content=st.lists(st.tuples(_FIELD, _FIELD), min_size=1, max_size=6), end=st.sampled_from(["\n", "\r\n"]))
def test_csv_gives_what_the_csv_module_wrote(tmp_path_factory, content, end):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end).writerows([("prompt", "answer"), *content])
    kept = [row for row in content if any(field.strip() for field in row)]
    if kept:
        table = LineTable(path)
        assert [(row["prompt"] or "", row["answer"] or "") for row in rows(table)] == kept
        assert rows(table) == [table[i] for i in reversed(range(len(table)))][::-1]


# ------------------------------------------------------------------------------------------------ Parquet and the Hub


def test_parquet_rows_have_every_column_but_not_the_nulls_that_nested_ones_need(hub):
    tool = {"role": "user", "content": "b", "name": "tool"}
    content = [
        {"prompt": [{"role": "user", "content": "a"}], "answer": "1", "metadata": {"tolerance": 0.1}, "level": None},
        {"prompt": [tool], "answer": "2", "metadata": None, "level": 3},
    ]
    table = open_one(write_parquet(hub / "set.parquet", content))
    user = {"role": "user", "content": "a"}
    first = {"prompt": [user], "answer": "1", "metadata": {"tolerance": 0.1}, "level": None}
    assert rows(table) == [first, {"prompt": [tool], "answer": "2", "metadata": None, "level": 3}]
    assert (table.name, table.where(1)) == ("set", f"{hub / 'set.parquet'}, row 2")


def test_a_parquet_file_that_was_rewritten_is_read_anew(hub):
    for value in ("old", "new"):
        assert rows(open_one(write_parquet(hub / "set.parquet", [{"prompt": value}]))) == [{"prompt": value}]


@pytest.mark.parametrize("content", [b"", b"PAR1garbage", b'{"prompt": 1}'])
def test_a_corrupt_parquet_file_is_named(hub, content, capfd):
    path = put(hub, "set.parquet", content)
    assert refusal(path).startswith(f"{path}: cannot be loaded (")
    assert refusal(path).endswith("; write it again")
    assert capfd.readouterr() == ("", ""), "the sentence says it all"


def test_a_data_set_of_the_hub_has_splits_and_subsets(hub):
    for split in ("train", "test"):
        write(hub, {"prompt": split}, name=f"owner/plain/{split}.jsonl")
        write_parquet(hub / f"owner/set/main/{split}-00000-of-00001.parquet", [{"prompt": f"main {split}"}])
    card = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n"
    (hub / "owner/set/README.md").write_text(f"{card}  - split: test\n    path: main/test-*\n---\n")
    assert rows(open_one("owner/plain", split="test")) == [{"prompt": "test"}]
    table = open_one("owner/set", split="test", subset="main")
    assert rows(table) == [{"prompt": "main test"}]
    assert (table.name, table.where(0)) == ("set", "owner/set (test), row 1")


def test_what_the_hub_does_not_have_is_said(hub):
    write(hub, {"prompt": "a"}, name="owner/set/train.jsonl")
    remedy = "; check the name, the split, the subset and the network"
    for path, keywords, words in (
        ("owner/set", {"split": "test"}, "Unknown split \"test\". Should be one of ['train']."),
        ("owner/set", {"subset": "main"}, "BuilderConfig 'main' not found"),
        ("owner/other", {}, "Couldn't reach 'owner/other' on the Hub"),
    ):
        said = refusal(path, **keywords)
        assert said.startswith(f"{path}: cannot be loaded (") and said.endswith(remedy)
        assert words in said


# ------------------------------------------------------------------------------------------------ paths


def test_a_pattern_names_files_of_any_format_in_order(tmp_path):
    write(tmp_path, {"a": 1}, name="b.jsonl")
    put(tmp_path, "a.csv", "a\n2\n")
    tables = open_tables(f"{tmp_path}/*", split="train", subset=None)
    assert [(table.name, rows(table)) for table in tables] == [("a", [{"a": "2"}]), ("b", [{"a": 1}])]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    assert rows(open_one(write(tmp_path, {"a": 1}, name="set[1].jsonl"))) == [{"a": 1}]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, {"a": 1})
    assert rows(open_one("~/set.jsonl")) == rows(open_one("~/*.jsonl")) == [{"a": 1}]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.jsonl", "nowhere.jsonl: cannot be read (No such file or directory); check the path"),
        ("data/nowhere.csv", "data/nowhere.csv: cannot be read"),
        (".", ".: cannot be read, since it is a folder; name its files, for example ./*.jsonl"),
        ("gsm8k", "gsm8k: cannot be read (No such file or directory); check the path; a data set of the Hub is named"),
        ("data/*.jsonl", "data/*.jsonl: no file matches this pattern"),
    ],
)
def test_a_bad_path_is_named(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    assert refusal(path).startswith(words)


# ------------------------------------------------------------------------------------------------ during a run


def test_a_file_that_is_deleted_or_replaced_can_still_be_read(tmp_path):
    path = write(tmp_path, {"a": 1}, {"a": 2})
    table = open_one(path)
    os.replace(write(tmp_path, {"b": 3}, name="new.jsonl"), path)
    assert rows(table) == [{"a": 1}, {"a": 2}]
    os.remove(path)
    assert rows(table) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(("name", "start"), [("set.jsonl", ""), ("set.csv", "a\n")])
def test_a_file_that_is_cut_gives_a_reason_and_a_place(tmp_path, name, start):
    path = put(tmp_path, name, start + '"1234"\n"5678"\n')
    table = open_one(path)
    path.write_text(start + '"12')
    for index in (0, 1):
        bad_row(table, index)
        assert str(path) in table.where(index)


def test_a_process_that_was_forked_reads_the_same_file(tmp_path):
    table = open_one(write(tmp_path, *({"a": i} for i in range(200))))
    child = os.fork()
    same = rows(table) == [{"a": i} for i in range(200)]  # both at once
    if child == 0:
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0 and same


# ------------------------------------------------------------------------------------------------ columns


def test_a_column_is_a_name_or_a_dotted_path():
    row = {"a.b": 1, "a": {"b": 2, "c": {"d": 3}}, "e": None, "f": "text"}
    assert lookup(row, "a.b") == 1, "a name first"
    assert lookup(row, "a.c.d") == 3
    assert [lookup(row, column) for column in ("e", "f.g", "a.x.y", "x", "e.x")] == [None] * 5


@given(st.dictionaries(st.text(string.ascii_lowercase + ".", min_size=1), st.integers()))
def test_every_key_of_a_row_is_found_by_its_own_name(row):
    assert {key: lookup(row, key) for key in row} == row


@pytest.mark.parametrize("depth", [90, 200, 3000, 100_000])
def test_a_row_that_is_nested_deeply_is_bad(tmp_path, depth):
    """A checkpoint could not hold what is nested some hundreds of levels deep, though JSON can be read."""
    table = open_tables(
        write(tmp_path, f'{{"prompt": "?", "metadata": {"[" * depth}{"]" * depth}}}'), split="", subset=None
    )[0]
    if depth < 100:
        assert table[0]["prompt"] == "?"
    else:
        with pytest.raises(ValueError, match="nested too deeply"):
            table[0]
