"""How two JSON objects differ."""

from siglip_jax.files import differences


def test_differences_name_every_leaf():
    ours = {"model": {"patch_size": 8, "depth": 2}, "seed": 0, "data": "a", "only": [1]}
    theirs = {"model": {"patch_size": 16, "depth": 2}, "seed": 0, "data": {"a": 1}, "more": None}
    assert differences(ours, theirs) == [
        "data: 'a' here, {'a': 1} there",
        "model.patch_size: 8 here, 16 there",
        "only: [1] here, None there",
    ]
    assert differences(ours, ours) == []
