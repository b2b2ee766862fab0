"""Keys with dots, members that nobody reads, and files that are no members of samples."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.tar_samples import Findings, read_samples
from siglip_jax.errors import UserError

KEYS_END = (
    "keys end at the first dot, though all names of 1 items have several, as hat.v1.jpg; "
    "--dots_in_keys ends them at the last"
)


def write(path, names):
    with tarfile.open(path, "w") as archive:
        for name in names:
            data = b"{}" if name.endswith(".json") else name.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def told(path, **options):
    """[(id, title, pictures, kind of problem)] and the sentences."""
    catalogue = read_catalogue(path, **options)
    items = [
        (item.id, item.title, [item.image, *item.more_images], item.problem and item.problem.kind)
        for item in catalogue.items()
    ]
    return items, catalogue.unused()


def test_keys_with_dots(tmp_path):
    names = [f"hat.v{k}.{end}" for k in (1, 2) for end in ("jpg", "txt")]
    path = write(tmp_path / "a.tar", names)
    items, sentences = told(path)
    assert items == [("hat", "hat.v1.txt", [""], "dots in the key")]
    assert sentences == [
        "1 member *.v1.jpg, 1 member *.v2.jpg taken as further pictures of their items",
        KEYS_END,
    ]
    items, sentences = told(path, dots_in_keys=True)
    assert items == [(f"hat.v{k}", f"hat.v{k}.txt", [f"hat.v{k}.jpg"], None) for k in (1, 2)]
    assert sentences == []


def test_numbers_count_further_pictures_and_titles(tmp_path):
    names = ["hat.jpg", "hat.1.jpg", "hat.txt", "hat.1.txt", "hat.side.png"]
    items, sentences = told(write(tmp_path / "a.tar", names))
    assert items == [("hat", "hat.txt", ["hat.jpg", "hat.1.jpg", "hat.side.png"], None)]
    assert sentences == ["1 member *.side.png taken as further pictures of their items"]


def test_a_tar_in_capitals_is_a_tar(tmp_path):
    write(tmp_path / "A.TAR", ["1.JPG", "1.TXT"])
    for path in (tmp_path / "A.TAR", tmp_path):
        assert told(path)[0] == [("1", "1.TXT", ["1.JPG"], None)]


def test_members_that_are_not_used_are_counted(tmp_path):
    names = [".DS_Store", "LICENSE", "1.jpg", "1.txt", "1.mp4", "2.jpg", "2.txt", "2.mp4"]
    items, sentences = told(write(tmp_path / "a.tar", names))
    assert [item[0] for item in items] == ["1", "2"]
    told_of = "2 members *.mp4, 1 member *.DS_Store, 1 member without a dot not used: neither pictures, .txt nor .json"
    assert sentences == [told_of]


@pytest.mark.parametrize("name", ["items.csv", "shop/articles.parquet"])
def test_a_table_in_a_tar(tmp_path, name):
    path = write(tmp_path / "a.tar", ["images/1.jpg", name])
    with pytest.raises(UserError, match=f"holds the table {name}, so it is a packed folder"):
        told(path)
    path = write(tmp_path / "b.tar", ["1.jpg", "1.txt", "1.csv"])  # a member of a sample
    assert [item[0] for item in told(path)[0]] == ["1"]


NAMES = st.from_regex(r"[a-c]{1,2}(\.[a-z1-3]{1,2}){0,3}\.(jpg|txt|json|bin)", fullmatch=True)


@given(st.lists(NAMES, max_size=9, unique=True))
def test_every_member_is_in_one_sample_or_counted(tmp_path_factory, names):
    path = write(tmp_path_factory.mktemp("tar") / "a.tar", names)
    for dots in (False, True):
        findings = Findings()
        samples = list(read_samples(path, findings, dots_in_keys=dots))
        read = [member for sample in samples for member in sample.members if not member.endswith(".bin")]
        assert sorted(read) == sorted(name for name in names if not name.endswith(".bin"))
        assert findings.unused.total() == sum(name.endswith(".bin") for name in names)
