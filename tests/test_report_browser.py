"""The report in a real browser, from disk, with the network off: a made-up run of hostile names and pictures."""

from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from test_report import METHODS, make_up

from icssl_lib import figures, metrics, report
from icssl_lib.catalogue import open_catalogue
from icssl_lib.config import load_config

LABELS = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "Quotes \" and ' & <b>",
    "Lampes d’été 🧴",
    "مصابيح",
    "Averylongnamewithoutanyspaceinit" * 3,
    *(f"class {k}" for k in range(6)),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The run folder with its report; the figures are drawn as notebooks 01, 04 and 05 draw them."""
    folder, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    labels = np.repeat(LABELS, [300, 200, 200, 100, 100, 100, 60, 40, 40, 20, 20, 20])
    for k in range(len(LABELS)):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).resize((64, 64)).save(folder / f"{k}.png")
    table = pd.DataFrame({"id": [f"i{k:04d}" for k in range(len(labels))], "label": labels})
    table["title"] = [f"</script><img src=x onerror='window.hacked = 1'> 🧴 \"{i}\" {i[:2]}" for i in table["id"]]
    table["image"] = [f"{LABELS.index(label)}.png" for label in labels]
    table.to_csv(folder / "products.csv", index=False)
    source = {"source": "table", "table": "products.csv", "id": "id", "image": "image", "image_folder": "."}
    study = {"study": "made-up", "seeds": [0, 1], "datasets": {"beauty": source}, "methods": list(METHODS)}
    study |= {"text": {"model": "somewhere"}, "vision": {"model": "vit_tiny_patch16_224"}}
    study |= {"finetune": {"fractions": [0.05, 0.5, 1.0]}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    study, out = load_config(folder / "study.yaml"), tmp_path_factory.mktemp("run")
    make_up(study, out)

    results = report.read_results(out)
    predictions = report.read_predictions(out, results)
    differences = metrics.differences(predictions, report.heads_and_tails(out, ["beauty"]), n=20)
    figures.save_table(differences, out / "figures" / "differences.csv")
    efficiency = metrics.label_efficiency(results)
    sizes = report.class_sizes([open_catalogue(out / "catalogues" / "beauty")])
    drawn = {
        "figure5": (figures.figure5(results), results),
        "accuracy": (figures.accuracy_curves(results), results),
        "label_efficiency": (figures.label_efficiency(efficiency), efficiency),
        "beauty_class_sizes": (figures.class_sizes(sizes), sizes),
    }
    for name, (fig, frame) in drawn.items():
        figures.save(fig, frame, out / "figures" / name)
    report.build(study, out)
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    with browser.started() as found:
        yield found


@pytest.fixture(scope="module")
def index(out) -> str:
    return (out / "report" / "index.html").as_uri()


@pytest.fixture(scope="module")
def classes(out) -> str:
    return (out / "report" / "classes-beauty.html").as_uri()


@pytest.fixture(scope="module")
def table(out) -> pd.DataFrame:
    """What the page of classes must show: rows by fraction, method and label."""
    predictions = report.read_predictions(out, report.read_results(out))
    sizes = report.class_sizes([open_catalogue(out / "catalogues" / "beauty")])
    return report.per_class(predictions, sizes).set_index(["fraction", "method", "label"])


def column(page, name: str) -> list[str]:
    """The texts in one column of the table, of the rows that are shown."""
    return page.evaluate(
        """name => {
          const table = document.getElementById("table"), heads = [...table.tHead.rows[1].cells];
          const at = heads.findIndex(head => head.textContent === name);
          return [...table.tBodies[0].rows].filter(row => !row.hidden && row.className !== "detail")
            .map(row => (at ? row.cells[at] : row.cells[0].querySelector("bdi")).textContent);
        }""",
        name,
    )


def numbers(page, name: str) -> list[float]:
    return [float(text.translate({0x2212: "-", 0xB1: ""})) for text in column(page, name)]


def head(page, name: str):
    return page.locator("#table > thead th", has=page.get_by_role("button", name=name, exact=True))


def test_classes_are_sorted_by_click(chromium, classes):
    with browser.opened(chromium, classes) as page:
        assert head(page, "Net").get_attribute("aria-sort") == "descending"
        assert numbers(page, "Net") == sorted(numbers(page, "Net"), reverse=True)
        for name, first in (("Change in F1", "descending"), ("In Train", "descending"), ("SimCSE", "descending")):
            head(page, name).get_by_role("button").click()
            assert head(page, name).get_attribute("aria-sort") == first
            assert numbers(page, name) == sorted(numbers(page, name), reverse=True)
            head(page, name).get_by_role("button").click()
            assert numbers(page, name) == sorted(numbers(page, name))
            assert page.locator("[aria-sort]").count() == 1
        assert len(set(numbers(page, "SimCSE"))) > 3
        assert "SimCSE, ascending" in page.locator("#status").inner_text()


def test_classes_are_sorted_and_opened_by_keyboard(chromium, classes):
    with browser.opened(chromium, classes) as page:
        page.locator("#filter").focus()
        page.keyboard.press("Tab")  # the box that scrolls
        assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert head(page, "Class").get_attribute("aria-sort") == "ascending"
        plain = [label for label in column(page, "Class") if label.startswith("class")]
        assert plain == [f"class {k}" for k in range(6)]
        for _ in range(4):
            page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert head(page, "Change in F1").get_attribute("aria-sort") == "descending"
        page.locator("#table tbody button").first.focus()
        page.keyboard.press("Enter")
        opened = page.locator("tr.detail")
        assert opened.count() == 1
        button = page.locator("#table tbody button").first
        assert button.get_attribute("aria-expanded") == "true"
        assert page.locator(f"#{button.get_attribute('aria-controls')}").count() == 1
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert opened.count() == 0
        assert button.get_attribute("aria-expanded") == "false"


def test_typing_filters_the_classes(chromium, classes):
    with browser.opened(chromium, classes) as page:
        page.locator("#filter").fill("CLASS 3")
        assert column(page, "Class") == ["class 3"]
        assert page.locator("#status").inner_text().startswith("1 of 12 classes")
        page.locator("#filter").fill("<script>")
        assert column(page, "Class") == [LABELS[0]]
        page.locator("#filter").fill("no such class")
        assert column(page, "Class") == []
        page.locator("#filter").fill("")
        page.locator("#part").select_option("tail")
        assert set(column(page, "Part")) == {"tail"}
        page.locator("#filter").fill("class")
        head(page, "Class").get_by_role("button").click()  # sorting keeps the filter
        assert set(column(page, "Part")) == {"tail"}
        assert 1 < len(column(page, "Class")) < 12


def test_fraction_and_method_change_the_numbers(chromium, classes, table):
    with browser.opened(chromium, classes) as page:
        said = page.locator("#caption").inner_text()
        page.locator("#fraction").select_option("50%")
        page.locator("#method").select_option("SimCSE")
        assert page.locator("#against").inner_text() == "SimCSE against BERT (origin)"
        labels = column(page, "Class")
        for name, method in (("BERT (origin)", "origin"), ("ConVIRT", "convirt")):
            expected = [f"{table.loc[(0.5, method, label), 'f1']:.3f}" for label in labels]
            assert column(page, name) == expected
        expected = [table.loc[(0.5, "simcse", label), "difference"] for label in labels]
        assert numbers(page, "Change in F1") == pytest.approx(expected, abs=6e-4)
        assert numbers(page, "Net") == sorted(numbers(page, "Net"), reverse=True)
        now = page.locator("#caption").inner_text()
        assert now != said
        assert now.startswith("At 50% of Train, F1 of SimCSE is above that of BERT (origin)")


def test_open_classes_show_what_they_gained_and_lost(chromium, classes, out):
    changed = report.gained_and_lost(report.read_predictions(out, report.read_results(out)))
    changed = changed[(changed["fraction"] == 0.05) & (changed["method"] == "convirt")]
    titles = open_catalogue(out / "catalogues" / "beauty").products.set_index("id")["title"]
    with browser.opened(chromium, classes) as page:
        labels = column(page, "Class")
        assert sorted(labels) == sorted(LABELS)
        for button in page.locator("#table > tbody > tr > th button").all():
            button.click()
        for label, inside in zip(labels, page.locator("tr.detail").all(), strict=True):
            for change, section in (("gained", 0), ("lost", 1)):
                rows = changed[(changed["change"] == change) & (changed["label"] == label)]
                part = inside.locator(".lists > div").nth(section)
                assert part.locator("h3").inner_text().split(";")[0] == f"{change.capitalize()}: {len(rows)}"
                texts = [tuple(item.locator("bdi").all_inner_texts()) for item in part.locator("li").all()]
                assert len(texts) == min(len(rows), report.EXAMPLES)
                assert {(titles[r.id], r.instead) for r in rows.itertuples()}.issuperset(texts)
            assert inside.locator("table tbody tr").count() == len(METHODS)
        items = page.locator("tr.detail li")
        assert items.count() > 10
        widths = items.locator("img").evaluate_all(
            "all => Promise.all(all.map(p => p.decode().then(() => p.naturalWidth)))"
        )
        assert widths == [report.SIDE] * items.count()
        page.locator("#fraction").select_option("100%")  # open classes follow
        assert page.locator("tr.detail").count() == len(LABELS)
        assert page.locator("tr.detail").first.locator(".now").first.inner_text() == "F1 at 100%"
        assert page.evaluate("window.hacked") is None


def test_policy_stops_what_would_slip_in(chromium, classes):
    with browser.opened(chromium, classes, ignore=("Content Security Policy",)) as page:
        page.evaluate("""() => {
          document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.hacked = 1'>");
          document.body.append(Object.assign(document.createElement("script"), {textContent: "window.hacked = 1"}));
        }""")
        page.wait_for_timeout(100)
        assert page.evaluate("window.hacked") is None
        assert page.problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_can_be_read(chromium, index, classes, scheme):
    for address in (index, classes):
        with browser.opened(chromium, address, width=360, height=740, color_scheme=scheme) as page:
            if address == classes:
                page.locator("#table > tbody button").first.click()
            assert browser.overflow(page) == 0
            assert browser.low_contrast(page) == []
            back = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (back == "rgb(255, 255, 255)") == (scheme == "light")
            boxes = page.locator(".wide").evaluate_all(
                """boxes => boxes.map(box => ({
                  scrolls: box.scrollWidth > box.clientWidth, focusable: box.tabIndex === 0,
                  named: box.hasAttribute("aria-label") || box.hasAttribute("aria-labelledby"),
                }))"""
            )
            assert any(box["scrolls"] for box in boxes)
            assert all(box["focusable"] and box["named"] for box in boxes)
            page.set_viewport_size({"width": 1280, "height": 900})
            assert browser.overflow(page) == 0


def test_pictures_are_drawn_on_white(chromium, index):
    with browser.opened(chromium, index, color_scheme="dark") as page:
        pictures = page.locator("figure img")
        assert pictures.count() == 6
        for picture in pictures.all():
            assert picture.evaluate("p => p.decode().then(() => p.naturalWidth)") > 100
            assert picture.evaluate("p => getComputedStyle(p).backgroundColor") == "rgb(255, 255, 255)"


def test_a_keyboard_gets_past_the_menu(chromium, index, classes):
    for address in (index, classes):
        with browser.opened(chromium, address) as page:
            page.keyboard.press("Tab")
            skip = page.get_by_role("link", name="Skip to the content")
            assert skip.bounding_box()["x"] >= 0
            assert skip.evaluate("link => link === document.activeElement")
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.id") == "main"
            assert page.get_by_role("navigation").count() == 1
            assert page.get_by_role("main").count() == 1
            assert page.get_by_role("banner").count() == 1


def test_pages_lead_to_one_another(chromium, index):
    with browser.opened(chromium, index) as page:
        page.get_by_role("navigation").get_by_role("link", name="beauty").click()
        assert page.get_by_role("heading", level=1).inner_text() == "Classes of beauty"
        page.get_by_role("navigation").get_by_role("link", name="Data").click()
        assert page.url.endswith("index.html#catalogues")


def test_without_javascript_it_is_a_plain_table(chromium, classes):
    with browser.opened(chromium, classes, java_script_enabled=False) as page:
        assert page.locator("#table > tbody > tr").count() == len(LABELS)
        assert page.locator("button").count() == 0
        assert not page.locator("#controls").is_visible()
        assert page.get_by_text("Without JavaScript").is_visible()
        assert page.locator("#table > tbody bdi").all_inner_texts().count(LABELS[0]) == 1
