"""Reports read back: what is asked of them is there, or one line says so."""

import pytest

from eval.report.saved_report import read_report
from siglip_jax.errors import UserError


def test_what_is_there(tmp_path):
    (tmp_path / "r.json").write_text('{"rows": [1]}')
    assert read_report(tmp_path / "r.json", flag="report", needs=("rows",)) == {"rows": [1]}


@pytest.mark.parametrize("content", [None, "", "[]", '"rows"', "3", "{}", "\x80"])
def test_another_file(tmp_path, content):
    if content is not None:
        (tmp_path / "r.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"--report=.*r\.json: .* rank"):
        read_report(tmp_path / "r.json", flag="report", needs=("rows",))
