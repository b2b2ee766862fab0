"""The examples of docs/reference/python.md, run from top to bottom in a folder as the page describes it."""

import doctest
import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "python.md"


def test_every_example_gives_what_the_page_says(shop, shop_dataset, trained_workdir, tmp_path, monkeypatch):
    for name, target in (("shop", shop), ("data/shop", shop_dataset), ("runs/shop", trained_workdir)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"(?m)^```.*$", "", PAGE.read_text(encoding="utf-8"))  # a fence would be read as expected output
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) > 50
    printed: list[str] = []
    result = doctest.DocTestRunner().run(examples, out=printed.append)
    assert result.failed == 0, "".join(printed)
