"""`bench filters` finds what passes and loses nothing to the filter; how fast is no matter for a test."""

from siglip_jax import cli


def test_filters(capsys, monkeypatch):
    monkeypatch.setattr("eval.search.answers.SCANNED", 1000)  # so that half of the items are more
    assert cli.main(["bench", "filters", "--items=20000", "--dim=8", "--queries=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line[:16].strip(): line[16:].split()[:2] for line in lines[2:]}
    assert cells == {
        "no filter": ["20,000", "1.0000"],
        **{f"50 %, a {kind}": ["10,000", "1.0000"] for kind in ("value", "range")},
        **{f"1 %, a {kind}": ["200", "1.0000"] for kind in ("value", "range")},
        **{f"0.01 %, a {kind}": ["2", "1.0000"] for kind in ("value", "range")},
    }
