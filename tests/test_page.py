"""The page of results: what it holds, that it needs no network, and that it works in a real browser."""

import base64
import csv
import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Browser
from conftest import make_toy, only_run, toy_arguments
from matplotlib.figure import Figure

import main
import report
import tune
from reporting import figures, gallery, tables

NAMES = ['<img src=x onerror="document.title=1">', "a|b \"c\" & 'd'", "é$x_1$ ]]>"]
IMAGE = "val/<b onclick='x'> é\".png"


def odd_toy(root: Path) -> Path:
    """The toy data set with names that a page must escape."""
    toy = make_toy(root / "data")
    description = json.loads((toy / "dataset.json").read_text())
    (toy / "dataset.json").write_text(json.dumps(description | {"classes": NAMES}))
    images = np.load(toy / "formatted_val_images.npy").astype("U40")
    (toy / "images" / images[0]).rename(toy / "images" / IMAGE)
    images[0] = IMAGE
    np.save(toy / "formatted_val_images.npy", images)
    return toy


def train(toy: Path) -> Path:
    arguments = toy_arguments(toy)
    with np.load(toy / "similarity.npz") as file:
        scores = dict(file)
    np.savez(toy / "similarity.npz", **scores | {"classes": np.array(NAMES)})
    main.main(arguments)
    return only_run(toy)


def vary(run: Path, results: Path, loss: str, seed: int, **more: object) -> Path:
    """A copy of a run with a different identity and different numbers."""
    folder = results / f"{loss}_{seed}_{len(list(results.glob('*')))}"
    shutil.copytree(run, folder)
    about = json.loads((folder / "config.json").read_text())
    about["identity"] |= {"loss": loss, "seed": seed} | more
    (folder / "config.json").write_text(json.dumps(about))
    random, result = np.random.RandomState(seed), json.loads((folder / "test.json").read_text())
    result |= {"test_mAP": 50 + 10 * random.rand(), "val_mAP": 50 + 10 * random.rand()}
    (folder / "test.json").write_text(json.dumps(result))
    with open(folder / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "per_class.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"test_AP": 100 * random.rand()} for row in rows)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two settings of a method over two seeds each, two other methods, and an unfinished run."""
    root = tmp_path_factory.mktemp("page")
    run = train(odd_toy(root))
    results = root / "many"
    for seed in (0, 1):
        vary(run, results, "an", seed)
        vary(run, results, "EM_PL", seed, threshold=0.2)
        vary(run, results, "EM_PL", seed + 2, threshold=0.3)
    vary(run, results, "bce", 0)
    (vary(run, results, "EM", 5) / "test.json").unlink()
    return results


@pytest.fixture(scope="module")
def page(results) -> Path:
    report.main([str(results), "--html", str(results.parent / "page.html")])
    return results.parent / "page.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def shown_rows(browser: Browser) -> list[str]:
    """Method and threshold, which is in the last column, of the rows that are shown, in their order."""
    script = """return [...document.querySelectorAll("tr[data-row]")].filter(row => row.offsetParent !== null)
        .map(row => row.cells[0].textContent.trim() + " " + row.cells[row.cells.length - 1].textContent)"""
    return [row.strip() for row in browser.run(script)]


def shown_lines(browser: Browser) -> int:
    script = """return [...document.querySelectorAll('g[id^=train_loss]:not([id$=band])')]
        .filter(g => g.getClientRects().length).length"""
    return browser.run(script)


def type_filter(browser: Browser, text: str) -> None:
    browser.run(
        f"const box = document.getElementById('filter'); box.value = {json.dumps(text)}; "
        "box.dispatchEvent(new Event('input'))"
    )


def test_rows_are_filtered_by_words_and_settings_and_the_curves_with_them(page, browser):
    browser.open(page)
    assert shown_rows(browser) == ["bce 0.3", "an 0.3", "EM_PL 0.2", "EM_PL 0.3"]
    assert shown_lines(browser) == 4
    for text, count, lines in (("em_pl", 2, 2), ("threshold=0.2", 1, 1), ("loss=an", 1, 1), ("threshold=0", 0, 0)):
        type_filter(browser, text)
        assert (len(shown_rows(browser)), shown_lines(browser)) == (count, lines), text
    type_filter(browser, "")
    assert browser.run("return document.getElementById('count').textContent") == "4 of 4"
    assert browser.complaints() == []


def test_rows_are_sorted_by_number_both_ways(page, browser):
    browser.open(page)
    script = """const [table, name] = [[...document.querySelectorAll("table.runs")].at(-1), "test mAP"];
        const column = [...table.querySelectorAll("th")].findIndex(th => th.textContent === name);
        table.querySelectorAll("th")[column].firstElementChild.click();
        return [...table.tBodies[0].rows].map(row => +row.cells[column].textContent)"""
    once, twice = browser.run(script), browser.run(script)
    assert once == sorted(once, reverse=True) and twice == sorted(once) and len(once) == 3
    assert browser.complaints() == []


def test_a_menu_shows_a_different_setting(page, browser):
    browser.open(page)
    script = """const menu = document.querySelector("select[data-menu^=classes]");
        menu.value = "1"; menu.dispatchEvent(new Event("change"));
        return [...document.querySelectorAll("[data-choice^=classes]")].map(choice => !choice.hidden)"""
    assert browser.run(script)[:2] == [False, True]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_scores_stay_in_view_when_the_table_scrolls(page, browser, width):
    browser.open(page, width)
    script = """const box = [...document.querySelectorAll(".scroll")].find(box => box.querySelector(".runs"));
        box.scrollLeft = 10000;
        const [name, , test] = [...box.querySelectorAll("td")].map(cell => cell.getBoundingClientRect());
        const frame = box.getBoundingClientRect();
        return [name.left - frame.left, frame.right - test.right, box.scrollLeft]"""
    left, room, scrolled = browser.run(script)
    assert 0 <= left < 3 and room > 90 and (scrolled > 0 or width == 1280)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_its_text_stands_out(page, browser, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    text, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in browser.run(colours))
    assert (text > ground) == dark and abs(text - ground) > 400
    ink = browser.run("return getComputedStyle(document.querySelector('svg text')).fill")
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) == text
    assert browser.complaints() == []


def test_names_with_tags_do_nothing(page, browser):
    browser.open(page)
    assert browser.run("return document.title") == "Results: toy"
    assert browser.run("return document.querySelectorAll('img[src=x], b[onclick]').length") == 0
    text = browser.run("return document.body.textContent")
    assert all(name in text for name in NAMES) and IMAGE in text
    assert browser.complaints() == []


def test_the_page_is_one_file_that_loads_nothing(page):
    text = page.read_text()
    assert page.stat().st_size < 20 * 2**20
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "@import" not in text and "url(http" not in text
    found = re.search(r'href="data:text/csv;base64,([^"]*)"', text)
    if found:
        rows = list(csv.reader(io.StringIO(base64.b64decode(found[1]).decode())))
        assert rows[0] == ["image", "class", "probability"] and {row[1] for row in rows[1:]} <= set(NAMES)


def test_the_gallery_puts_the_most_probable_unlabelled_labels_first(results, tmp_path):
    run = shutil.copytree(next(results.glob("EM_PL_0_*")), tmp_path / "run")
    labels = np.zeros((10, 3), dtype=np.int8)
    probs = np.full((10, 3), 0.01, dtype=np.float32)
    labels[4, 1], probs[4, 1] = 1, 0.02  # missed
    labels[5, 2], probs[5, 2] = 1, 0.97  # a hit
    probs[[3, 7], [0, 2]] = 0.99, 0.95  # not labelled
    with np.load(run / "predictions.npz") as file:
        images = file["images"]
    np.savez(run / "predictions.npz", images=images, probs=probs, labels=labels)
    with open(run / "per_class.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [("class", "test_positives", "test_AP", "threshold"), *((n, 1, 9, 0.5) for n in NAMES)]
        )
    made = gallery.make(report.read_runs([run], [])[0][0])
    assert made["suspects"].values.tolist() == [
        [images[3], NAMES[0], pytest.approx(0.99)],
        [images[7], NAMES[2], pytest.approx(0.95)],
    ]
    assert [card["name"] for card in made["missing_labels"]] == [images[3], images[7]]
    by_class = {name: [card["headline"] for card in cards] for name, _, cards in made["by_class"]}
    assert by_class[NAMES[1]] == [f"{NAMES[1]} 0.02, missed"]
    kinds = {name: kind for name, _, kind, _ in made["missing_labels"][0]["labels"]}
    assert kinds[NAMES[0]] == "extra"
    assert made["missing_labels"][0]["picture"].startswith("data:image/jpeg;base64,")
    assert list(made["suspects"]) == ["image", "class", "probability"]


@pytest.mark.parametrize("gone", ["toy/images", "toy"])
def test_a_gallery_without_the_images_or_the_data_set_has_a_note(results, gone):
    run = report.read_runs([next(results.glob("EM_PL_0_*"))], [])[0][0]
    place = results.parent / "data" / gone
    place.rename(results.parent / "elsewhere")
    try:
        made = gallery.make(run)
    finally:
        (results.parent / "elsewhere").rename(place)
    assert made["missing_labels"] and not any(card["picture"] for card in made["missing_labels"])
    assert "images are not shown, because no readable files are below" in made["notes"][-1]


def test_a_page_of_many_settings_takes_seconds_and_still_scrolls(results, tmp_path, browser):
    run = next(results.glob("EM_PL_0_*"))
    for number in range(200):
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        about = json.loads((run / "config.json").read_text())
        about["identity"] |= {"seed": number % 2, "lr": number // 2}
        (folder / "config.json").write_text(json.dumps(about))
        for name in ("test.json", "metrics.jsonl", "per_class.csv", "predictions.npz"):
            shutil.copy(run / name, folder)
    began = time.process_time()
    report.main([str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")])
    assert time.process_time() - began < 10
    browser.open(tmp_path / "page.html")
    assert len(shown_rows(browser)) == 100
    assert browser.run("return document.querySelector('.scroll').clientHeight") < 900
    type_filter(browser, "lr=17")
    assert len(shown_rows(browser)) == 1 and browser.complaints() == []


def test_the_trials_of_tune_are_charts_with_the_settings_that_matter(tmp_path, browser):
    arguments = ["-d", "photos", "-g", "cpu", "--data-root", f"{tmp_path}/data", "--results-dir", f"{tmp_path}/results"]
    tune.main([*arguments, "-l", "EM_PL", "--trials", "8", "--runs", "1", "--linear-epochs", "1"])
    (tmp_path / "results/tune_short.csv").write_text("number,value,state,method,study\n0,55,COMPLETE,an,an 75\n")
    report.main([f"{tmp_path}/results", "--html", str(tmp_path / "page.html")])
    browser.open(tmp_path / "page.html")
    charts = "return [...document.querySelectorAll('#trials svg')].map(svg => svg.textContent)"
    trials, matter = browser.run(charts)
    assert "validation mAP, %" in trials
    assert "rank correlation" in matter and "linear_lr" in matter and "calibrate bias" in matter
    text = browser.run("return document.querySelector('#trials').textContent")
    assert "EM_PL on photos, 8 of 8 trials finished" in text and "an on short" not in text
    assert browser.complaints() == []


def test_a_data_set_with_unknown_test_labels_has_reasons_in_the_place_of_empty_charts(results, tmp_path, browser):
    for loss in ("an", "bce"):
        folder = shutil.copytree(next(results.glob(f"{loss}_0_*")), tmp_path / "runs" / loss)
        result = json.loads((folder / "test.json").read_text())
        kept = {name: value for name, value in result.items() if not name.startswith("test_")}
        (folder / "test.json").write_text(json.dumps(kept))
    report.main([str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")])
    browser.open(tmp_path / "page.html")
    count = "return ['curves', 'classes', 'gallery'].map(id => document.querySelectorAll(`#${id} svg`).length)"
    assert browser.run(count) == [2, 0, 0]
    text = browser.run("return document.body.textContent")
    assert "No run has a test score, because the test labels are not known." in text
    assert "validation mAP, % · an" in text and "too few pairs" not in text


def test_figures_name_the_method_of_the_pseudo_labels_and_have_bars_from_zero(results):
    rows = tables.group(report.read_runs([results], ["loss=EM_PL", "threshold=0.2"])[0])
    bars, quality = (Figure().subplots() for _ in range(2))
    assert figures.test_scores(bars, rows) and figures.pseudo_label_quality(quality, rows)
    assert bars.get_xlim()[0] == 0
    assert quality.get_title().startswith("EM_PL, ") and quality.get_legend() is None  # it is drawn below the axes


def test_no_page_is_made_of_nothing(tmp_path, fails):
    assert "no finished run" in fails(report.main, [str(tmp_path), "--html", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()
