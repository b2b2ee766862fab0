"""The page, driven in headless Chromium: what a person sees who searches, compares and has no mouse."""

import numpy as np
import pytest

import siglip_jax
from eval.embeddings import read_store
from input_pipeline.dataset import open_split
from siglip_jax import cli

CARDS = "document.querySelectorAll('.side:not([hidden]) .card').length"
STATUS = "document.getElementById('status').textContent"
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def shown(shop_dataset, tmp_path_factory):
    """{encoder: its index}."""
    folder, indexes = tmp_path_factory.mktemp("page"), {}
    for name in ("pixels:4x4", "colours:2x2x2"):
        store, index = folder / f"store {name}", folder / f"index {name}"
        assert cli.main(["embed", f"--model={name}", f"--dataset={shop_dataset}", f"--output={store}"]) == 0
        assert cli.main(["index", f"--store={store}", f"--output={index}"]) == 0
        indexes[name] = index
    return indexes


@pytest.fixture
def flags(shown, shop_dataset):
    (model, index), (other, candidate) = shown.items()
    return [
        f"--index={index}", f"--model={model}", f"--dataset={shop_dataset}", f"--candidate={candidate}",
        f"--candidate_model={other}", "--compare=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_an_item_a_photo_and_what_is_shown_of_them(browser, serve, flags, shop_dataset, tmp_path):
    rows = open_split(shop_dataset, "test")[:]
    address, others = serve(*flags), min(24, len(rows) - 1)
    browser.open(f"{address}#{rows[0]['id']}")
    browser.until(f"{STATUS} === '{others} items, nearest first' && {CARDS} === {others}")
    assert browser.value("document.querySelectorAll('.shared').length") > 0
    assert "Same " in browser.value("document.querySelector('.why').textContent")
    browser.until("[...document.querySelectorAll('.card img')].slice(0, 4).every((image) => image.naturalWidth > 0)")

    def choose(script):
        browser.value(f"{script}.dispatchEvent(new Event('change'))")

    choose("part('group').value = 'colour', part('group')")
    colours = (
        "[...document.querySelectorAll('.card .attributes span')].filter((tag) => tag.title.startsWith('colour:'))"
    )
    different = len({row["attributes"]["colour"] for row in rows}) - 1
    browser.until(f"{CARDS} === {different}")
    assert len(set(browser.value(f"{colours}.map((tag) => tag.textContent)"))) == different
    choose("part('group').value = '', part('collapse').checked = true, part('collapse')")
    choose("part('diversity').value = 0.5, part('diversity')")
    browser.until(f"{STATUS}.includes('near and unlike each other')")
    choose("part('diversity').value = 0, part('collapse').checked = false, part('diversity')")
    browser.until(f"{CARDS} === {others}")

    (tmp_path / "photo.jpg").write_bytes(rows[3]["image"])
    browser.choose_file("#photo", tmp_path / "photo.jpg")
    browser.until("document.querySelector('#asked .title').textContent === 'photo.jpg'")
    browser.until("document.querySelector('.card .score').textContent.startsWith('1.000')")


@pytest.mark.slow
def test_two_encoders_side_by_side_on_a_screen_and_on_a_phone(browser, serve, flags, shop_dataset):
    rows = open_split(shop_dataset, "test")[:]
    address = serve(*flags)
    for width in (1280, 390):
        browser.open(f"{address}#{rows[1]['id']}", width=width)
        browser.until(f"{CARDS} > 0")
        browser.value("part('more').open = true, part('both').click()")
        browser.until("!part('comparison').hidden && document.querySelectorAll('.side:not([hidden])').length === 2")
        assert "items on both sides" in browser.until(STATUS)
        names = browser.value("[...document.querySelectorAll('.side-name')].map((name) => name.textContent)")
        assert [name.split()[0] for name in names] == ["pixels:4x4", "colours:2x2x2"]
        assert browser.value("document.documentElement.scrollWidth") <= width  # nothing sticks out
        small = "[...document.querySelectorAll('button, select, summary, .button')].filter((each) => each.offsetParent)"
        assert browser.value(f"Math.min(...{small}.map((each) => each.getBoundingClientRect().height))") >= 24


@pytest.mark.slow
def test_without_a_mouse_and_with_a_token(browser, serve, flags, shop_dataset, tmp_path):
    rows = open_split(shop_dataset, "test")[:]
    (tmp_path / "token").write_text(TOKEN)
    address = serve(*flags, f"--token_file={tmp_path / 'token'}")
    browser.open(address)
    browser.until("document.activeElement.id === 'token'")
    browser.type("wrong")
    browser.press("Enter", "\r")
    browser.until(f"{STATUS} === 'The token is wrong.'")
    browser.type(TOKEN)
    browser.press("Enter", "\r")
    browser.until("part('login').hidden && part('group').options.length > 1")
    browser.value("document.activeElement.blur()")
    browser.press("/", "/")
    browser.type("red dress")  # the encoder has no text tower
    browser.press("Enter", "\r")
    browser.until(
        f"{STATUS}.startsWith('There is no item “red dress”, and this server has no model to search by words')"
    )
    browser.value("part('words').value = '', document.activeElement.blur()")
    browser.press("/", "/")
    browser.type(rows[2]["id"])
    browser.press("Enter", "\r")
    browser.until(f"{CARDS} > 2")
    browser.until("document.querySelector('.card img').naturalWidth > 0")  # fetched with the token
    browser.value("document.querySelector('.card').focus()")
    browser.press("ArrowRight")
    title = browser.until("document.activeElement === document.querySelectorAll('.card')[1] && "
                          "document.activeElement.querySelector('.title').textContent")  # fmt: skip
    browser.press("Enter", "\r")
    browser.until(f"document.querySelector('#asked .title').textContent === {title!r}")
    stored = browser.value("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert TOKEN not in stored


@pytest.mark.slow
def test_words_find_what_their_embedding_is_near_to(browser, serve, trained_workdir, shop_dataset, tmp_path):
    store, index = tmp_path / "store", tmp_path / "index"
    flags = [f"--model={trained_workdir}", f"--dataset={shop_dataset}"]
    assert cli.main(["embed", *flags, f"--output={store}"]) == 0
    assert cli.main(["index", f"--store={store}", f"--output={index}"]) == 0
    model, stored = siglip_jax.load(trained_workdir), read_store(store)
    words = "blue striped shirt"
    nearest = stored.ids[int(np.argmax(stored.vectors @ model.encode_text([words])[0]))]
    browser.open(serve(*flags, f"--index={index}"))
    browser.until("part('group').options.length > 1")
    browser.press("/", "/")
    browser.type(words)
    browser.press("Enter", "\r")
    browser.until(f"{CARDS} > 2")
    assert words in browser.value("document.getElementById('asked').textContent")
    titles = {row["id"]: row["title"] for row in open_split(shop_dataset, "test")[:]}
    assert browser.value("document.querySelector('.card .title').textContent") == titles[nearest]
