"""The bench of near pictures runs and says what it is asked; its figures are no matter for a test."""

from siglip_jax import cli


def test_bench_duplicates(shop_dataset, capsys):
    options = [f"--dataset={shop_dataset}", "--pictures=20", "--rows=500"]
    assert cli.main(["bench", "duplicates", *options, "--attribute=type"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line[:18].strip(): line.split()[-3:] for line in lines}
    assert found["JPEG quality 60"][2] == "1.000"
    assert all(0 <= float(share) <= 1 for share in found["2 % cropped"])
    assert any(line.startswith("20 bits of 256") for line in lines)
    assert lines[-1].startswith("search among 500 rows: ")


def test_an_attribute_that_is_not_there(shop_dataset, capsys):
    assert cli.main(["bench", "duplicates", f"--dataset={shop_dataset}", "--attribute=size"]) == 2
    assert "--attribute=size: no such attribute; there are type, colour" in capsys.readouterr().err
