"""The page, opened from a file in a headless Chromium: what is read, clicked and typed there, and its console."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dnc.diagnosis.page
from dnc.diagnosis.page import write_page
from dnc.diagnosis.report import Box, Diagnosis, Histogram, Kept
from dnc.errors import DncError, DncWarning
from tests import browser as browsers
from tests.browser import DESKTOP, PHONE, Browser, asked_for, fits, resize
from tests.diagnosis.made_up import made_up

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\u2028${title}"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from browsers.chromium(tmp_path_factory.mktemp("chromium"))


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[Callable[..., Browser]]:
    """Writes a page and opens it at a width. At the end of the test its console has to be empty, and nothing but the
    page may have been asked for."""
    path = tmp_path / "page.html"

    def opened(diagnosis: Diagnosis, width: int = DESKTOP) -> Browser:
        write_page(diagnosis, path)
        resize(chromium, width)
        chromium.get(path.as_uri())
        # Otherwise a click waits for nobody knows how long a scroll.
        chromium.execute_script("document.documentElement.style.scrollBehavior = 'auto'")
        return chromium

    chromium.get("about:blank")
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    yield opened
    assert chromium.get_log("browser") == []
    assert asked_for(chromium) == {path.as_uri()}


@pytest.fixture(scope="module")
def photograph() -> Path:
    return Path(dnc.diagnosis.page.__file__).parents[1] / "graph" / "photograph.jpg"


def text(browser: Browser, selector: str) -> str:
    return str(browser.find_element("css selector", selector).text)


def click(browser: Browser, selector: str) -> None:
    """As a user does: it fails where something covers the element."""
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def numbers(browser: Browser) -> list[int]:
    """Of the layers in the table, in its order; -1 for the input."""
    found = browser.execute_script(
        "return [...document.querySelectorAll('#table tbody .index')].map(i => i.textContent)"
    )
    return [int(number or -1) for number in found]


def header(browser: Browser, title: str) -> Any:
    (found,) = [cell for cell in browser.find_elements("css selector", "#table thead th") if title in cell.text]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_it_opens_from_a_file(opened: Callable[..., Browser], photograph: Path, width: int) -> None:
    browser = opened(made_up(images=[photograph, photograph]), width)
    for folded in browser.find_elements("css selector", "details:not([open]) > summary"):
        folded.click()
    assert fits(browser, width)
    assert len(numbers(browser)) == 13
    sizes = browser.execute_script(
        "return Promise.all([...document.images].map(async i => (await i.decode(), i.naturalWidth)))"
    )
    assert sizes == [216, 216]
    said = text(browser, "#sentences")
    assert "AVX2 without VNNI" in said
    assert "2.61 points less" in said
    assert [link.text for link in browser.find_elements("css selector", "nav a")] == [
        *("In short", "Noise over depth", "Layers", "Worth float32", "Images that changed most", "What the passes did")
    ]


@pytest.mark.slow
def test_a_click_on_a_header_sorts(opened: Callable[..., Browser]) -> None:
    diagnosis = made_up(images=[])
    own = {layer.number: layer.own for layer in diagnosis.layers}
    browser = opened(diagnosis)
    assert numbers(browser) == list(range(-1, 12))
    assert header(browser, "Layer").get_attribute("aria-sort") == "ascending"
    for order in ("descending", "ascending"):
        header(browser, "By itself").find_element("css selector", "button").click()
        assert header(browser, "By itself").get_attribute("aria-sort") == order
        assert header(browser, "Layer").get_attribute("aria-sort") is None
        *levels, last = [own[number] for number in numbers(browser)]
        assert levels == sorted(levels, reverse=order == "descending", key=lambda level: level or 0)
        assert last is None


@pytest.mark.slow
def test_layers_are_found_by_their_cfg_and_by_their_loss(opened: Callable[..., Browser]) -> None:
    browser = opened(made_up(images=[]))
    find = browser.find_element("id", "find")
    find.send_keys("filters=48 LEAKY")
    assert numbers(browser) == [5]
    assert text(browser, "#count") == "1 of 13 layers"
    find.clear()
    find.send_keys("nowhere")
    assert numbers(browser) == []
    find.send_keys("\b" * 7)
    click(browser, "#kinds .k-pairs-saturated")
    assert numbers(browser) == [2, 7]
    assert browser.find_element("css selector", "#kinds .k-pairs-saturated").get_attribute("aria-pressed") == "true"


@pytest.mark.slow
def test_a_chosen_layer_shows_its_histogram_and_its_cfg(opened: Callable[..., Browser]) -> None:
    browser = opened(made_up(images=[]))
    assert text(browser, "#detail-title") == "6 convolutional", "the first culprit"
    click(browser, "#table tr[data-index='4'] td:last-child")
    assert text(browser, "#detail-title") == "3 convolutional"
    assert browser.current_url.endswith("#layer-3")
    assert "filters=32" in text(browser, "#detail pre")
    assert len(browser.find_elements("css selector", "#histogram .bar-in")) > 20
    assert len(browser.find_elements("css selector", "#histogram .edge")) == 2
    assert browser.find_elements("css selector", "#histogram .bar-out"), "of 6 to 6.5, which the range cuts"
    assert "\N{MINUS SIGN}0.6 to 6" in text(browser, "#detail")
    # By the keyboard, along the plot.
    plot = browser.find_element("css selector", "#depth-plot svg")
    browser.execute_script("arguments[0].focus()", plot)
    active = browser.switch_to.active_element
    active.send_keys("\ue014")  # the right arrow
    assert text(browser, "#detail-title") == "4 convolutional"
    browser.switch_to.active_element.send_keys("\ue010")  # End
    assert text(browser, "#detail-title") == "11 yolo"
    assert browser.switch_to.active_element.get_attribute("aria-valuetext").startswith("11 yolo")
    # And by a link.
    click(browser, "#culprits a")
    assert text(browser, "#detail-title") == "6 convolutional"


@pytest.mark.slow
def test_boxes_of_one_engine_or_of_both(opened: Callable[..., Browser], photograph: Path) -> None:
    browser = opened(made_up(images=[photograph]))
    boxes = {side: browser.find_elements("css selector", f".picture .box.{side}") for side in ("against", "engine")}
    assert [len(found) for found in boxes.values()] == [3, 2]
    for choice, shown in (("against", [True, False]), ("engine", [False, True]), ("both", [True, True])):
        click(browser, f"#engines input[value={choice}]")
        assert [found[0].is_displayed() for found in boxes.values()] == shown
    assert text(browser, ".changes").split() == [
        *("gone", "truck", "64", "%", "gone", "cat", "26", "%"),
        *text(browser, ".changes li:last-child").split(),
    ]
    assert text(browser, ".changes li:last-child") == "new\n<b>bear & co</b>\n31 %"
    browser.execute_script("document.querySelector('.changes button').focus()")
    assert "lit" in str(boxes["against"][1].get_attribute("class"))


@pytest.mark.slow
def test_a_classifier_has_classes_and_no_boxes(opened: Callable[..., Browser], photograph: Path) -> None:
    (change,) = made_up(images=[photograph]).changes
    tabby, lynx = Box("tabby", 0, 0.5, 0, 0, 0, 0, "gone"), Box("lynx", 1, 0.5, 0, 0, 0, 0, "come")
    browser = opened(replace(made_up(), changes=(replace(change, against=(tabby,), engine=(lynx,)),)))
    assert text(browser, ".changes").split() == ["gone", "tabby", "50", "%", "new", "lynx", "50", "%"]
    assert browser.find_elements("css selector", ".box") == []


@pytest.mark.slow
def test_a_picture_is_enlarged(opened: Callable[..., Browser], photograph: Path) -> None:
    browser = opened(made_up(images=[photograph, photograph]))
    width = "return document.querySelector('.picture').clientWidth"
    before = browser.execute_script(width)
    click(browser, ".enlarge")
    assert browser.execute_script(width) > 2 * before
    assert text(browser, ".enlarge") == "smaller"


@pytest.mark.slow
def test_arrays_are_shown_by_their_first_channels(opened: Callable[..., Browser], tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"gray": np.zeros((6, 8), np.float32), "many": np.full((6, 8, 5), 65535, np.uint16)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    browser = opened(made_up(images=[tmp_path / f"{name}.npy" for name in arrays]))
    assert browser.execute_script("return [...document.images].map(i => i.naturalWidth)") == [8, 8]


@pytest.mark.slow
def test_the_option_is_copied(opened: Callable[..., Browser]) -> None:
    browser = opened(made_up(images=[]))
    assert text(browser, "#option") == made_up().keep[-1].option
    click(browser, "#copy")
    browser.execute_async_script("setTimeout(arguments[0])")
    assert text(browser, "#keep-body [role=status]") == "copied"


@pytest.mark.slow
def test_nothing_is_won(opened: Callable[..., Browser]) -> None:
    browser = opened(replace(made_up(images=[]), keep=(Kept((4,), -0.5, True), Kept((4, 5), 0.0, True))))
    assert [row.text for row in browser.find_elements("css selector", "#keep-body tbody tr")] == [
        "4\n\N{MINUS SIGN}0.50\nmeasured",
        "4, 5\n0.00\nmeasured",
    ]
    assert browser.find_elements("css selector", "#keep-body .meter, #copy") == []


@pytest.mark.slow
def test_names_are_no_markup(opened: Callable[..., Browser], photograph: Path, tmp_path: Path) -> None:
    image = tmp_path / HOSTILE.replace("/", "-")
    shutil.copy(photograph, image)

    def spoiled(value: Any) -> Any:
        """Every string that a diagnosis takes from a file, and the keys of every table."""
        if isinstance(value, dict):
            return {key: spoiled(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [spoiled(item) for item in value]
        return value + HOSTILE if isinstance(value, str) and value not in ("both", "gone", "come") else value

    diagnosis = Diagnosis.from_json(spoiled(made_up(images=[image]).to_json()))
    diagnosis = replace(diagnosis, changes=(replace(diagnosis.changes[0], path=str(image)),))
    browser = opened(diagnosis)
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.scripts.length") == 2
    assert browser.execute_script("return document.images.length") == 1
    assert browser.title.startswith("made-up.int8.engine</script>")
    for selector in ("h1", "#sentences", "#table", "#culprits", "#gallery", "#detail pre", "footer"):
        shown = browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)
        assert "onerror=" in shown, selector


@pytest.mark.slow
def test_long_names_fit_on_a_phone(opened: Callable[..., Browser]) -> None:
    """Paths and labels, in which nothing says where a line may end."""
    own = {"kind", "kinds", "place", "precision", "section", "text"}

    def longer(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item if key in own else longer(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [longer(item) for item in value]
        return f"/{'w' * 120}/{value}" if isinstance(value, str) else value

    diagnosis = Diagnosis.from_json(longer(made_up(images=["gone.jpg"]).to_json()))
    with pytest.warns(DncWarning, match="no such image"):
        browser = opened(diagnosis, PHONE)
    for folded in browser.find_elements("css selector", "details:not([open]) > summary"):
        browser.execute_script("arguments[0].click()", folded)
    assert fits(browser, PHONE)


@pytest.mark.slow
def test_nothing_measured_and_nothing_found(opened: Callable[..., Browser]) -> None:
    """Of a network without heads, data or noise."""
    whole = made_up(layers=2)
    layers = tuple(
        replace(layer, measured=False, own=None, accumulated=None, at_heads=None, range=None, histogram=None, kind="")
        for layer in whole.layers
    )
    nothing: dict[str, Any] = {
        "culprits": (),
        "heads": (),
        "metric": None,
        "keep": (),
        "changes": (),
        "passes": (),
        "boxes": 0,
    }
    browser = opened(replace(whole, layers=layers, **nothing), PHONE)
    assert "No layer loses anything" in text(browser, "#sentences")
    assert [link.text for link in browser.find_elements("css selector", "nav a")][:3] == [
        *("In short", "Noise over depth", "Layers")
    ]
    assert "not measured" in text(browser, "#detail").lower() or "nowhere" in text(browser, "#detail")
    opened(replace(whole, layers=(), **nothing))


def test_its_size(tmp_path: Path) -> None:
    """100 layers with the finest histograms, 128 images that compress as badly as any."""
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(noise)
    diagnosis = made_up(layers=100, images=[noise] * 128)
    histogram = Histogram(-1, 1, tuple(range(10**6, 10**6 + 2048)))
    path = tmp_path / "page.html"
    write_page(replace(diagnosis, layers=tuple(replace(row, histogram=histogram) for row in diagnosis.layers)), path)
    assert path.stat().st_size < 10_000_000
    pictures = json.loads(re.findall(r'id="data">(.*?)</script>', path.read_text("utf-8"))[0])["pictures"]
    assert len(pictures) == 128
    held = [picture is not None for picture in pictures]
    assert 10 < sum(held) < 128
    assert held == sorted(held, reverse=True), "those that changed most"


def test_numbers_that_json_has_not(tmp_path: Path) -> None:
    whole = made_up()
    layers = (replace(whole.layers[0], own=float("inf"), spread=float("nan")), *whole.layers[1:])
    with pytest.warns(DncWarning):
        write_page(replace(whole, layers=layers), tmp_path / "page.html")
    assert not re.search(
        r"Infinity|NaN\b(?!\()", (tmp_path / "page.html").read_text("utf-8").split('id="data">')[1].split("</")[0]
    )


def test_images_that_are_gone(tmp_path: Path) -> None:
    with pytest.warns(DncWarning, match=r"no such image"):
        write_page(made_up(images=[tmp_path / "away.jpg"]), tmp_path / "page.html")


def test_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(DncError):
        write_page(made_up(images=[]), tmp_path / "none" / "page.html")


def test_contrast() -> None:
    """All text on all grounds, light and dark: at least 4.5 to 1 (WCAG 2, AA)."""

    def luminance(color: str) -> float:
        parts = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    style = (Path(dnc.diagnosis.page.__file__).parent / "page.css").read_text("utf-8")
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(schemes) == 2
    for colors in schemes:
        grounds = [luminance(colors.pop(name)) for name in ("ground", "paper", "sunken")]
        for unread in ("line", "sum", "own"):
            colors.pop(unread)
        for name, color in colors.items():
            for ground in grounds:
                low, high = sorted([luminance(color), ground])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, color)
