"""The report in a real Chromium, opened from disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from psi_engine.artifacts import Run, write_json, write_table
from psi_engine.report_run import report
from psi_engine.statistics import verdicts
from psi_engine.types import VERDICTS

NASTY = "</script><img src=x onerror=alert(1)>\"'`&lt;"
"""A name that is markup wherever it is not treated as text."""

READY = "() => performance.getEntriesByName('psi-ready').length > 0"


@pytest.fixture(scope="module")
def shared_page(chromium: Any, toy_report: Path) -> Iterator[Any]:
    """One page for the tests that leave it as they found it."""
    page = opened(chromium, toy_report)
    yield page
    page.context.close()
    assert page.faults == []


@pytest.fixture
def page(shared_page: Any) -> Any:
    shared_page.set_viewport_size({"width": 1200, "height": 800})
    go(shared_page, "")
    return shared_page


def opened(chromium: Any, folder: Path, **options: Any) -> Any:
    """A page without a network that remembers everything that goes wrong in it."""
    options = {"viewport": {"width": 1200, "height": 800}} | options
    page = chromium.new_context(offline=True, **options).new_page()
    page.faults, page.address = [], (folder / "index.html").as_uri()

    def note(kind: str, text: str) -> None:
        page.faults.append(f"{kind}: {text}")

    page.on("console", lambda m: note("console", m.text) if m.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: note("error", str(error)))
    page.on("requestfailed", lambda request: note("failed", request.url))
    page.on("dialog", lambda dialog: (note("dialog", dialog.message), dialog.dismiss()))
    own = ("file:", "data:", "about:")
    page.on("request", lambda r: None if r.url.startswith(own) else note("net", r.url))
    return page


def go(page: Any, link: str) -> None:
    page.goto("about:blank")
    page.goto(f"{page.address}#{link}")
    page.wait_for_function(READY)


def turn_to(page: Any, view: str) -> None:
    page.click(f"nav a[data-view={view}]")
    page.locator(f"nav a[data-view={view}][aria-current]").wait_for()  # drawn a task later


def wait_for_title(page: Any, start: str) -> None:
    page.wait_for_function("start => document.title.startsWith(start)", arg=start)


def rows(page: Any) -> list[str]:
    return page.locator("tr[data-row] td.channel a").evaluate_all("all => all.map(a => a.title)")


def test_it_opens_with_the_headline_and_every_verdict(page: Any, toy_run: Run) -> None:
    found = toy_run.channels["verdict"].to_pylist()
    assert page.title().startswith("Overview")
    words = {0: "None", 1: "One"}
    opening = words.get(found.count("polysemantic"), str(found.count("polysemantic")))
    headline = page.locator("h1").inner_text()
    assert headline.startswith(f"{opening} of {len(found)} channels")
    assert headline.endswith(", controlled within each layer")
    counts = page.evaluate("PSI.verdicts.counts()")
    assert counts == {name: found.count(name) for name in VERDICTS}


def test_verdicts_at_any_level_are_those_of_python(page: Any, toy_run: Run) -> None:
    table = toy_run.channels
    psi_p, clarity_p = (
        torch.tensor(
            [math.nan if x is None else x for x in table[name].to_pylist()], dtype=torch.float64
        )
        for name in ("psi_p_adj", "clarity_p_adj")
    )
    levels = [0.001, 0.02, 0.05, 0.2, 0.5, 0.99]
    levels += [x for x in {*psi_p.tolist(), *clarity_p.tolist()} if 0 < x < 1]  # the very edges
    script = "at => [...Array(PSI.channels.count).keys()].map(row => PSI.verdicts.of(row, at))"
    told = {level: page.evaluate(script, level) for level in levels}
    for level in levels:
        assert told[level] == list(verdicts(psi_p, clarity_p, level))
    assert len({tuple(words) for words in told.values()}) > 1


def test_the_slider_changes_headline_counts_and_channel(page: Any, toy_run: Run) -> None:
    before = page.locator("h1").inner_text()
    page.locator(".level input[type=number]").fill("60")
    page.keyboard.press("Enter")
    at_sixty = page.evaluate("PSI.verdicts.counts(0.6)")
    assert page.evaluate("PSI.verdicts.counts()") == at_sixty
    assert "60" in page.locator("h1").inner_text() != before
    shown = page.locator("table.bars tbody tr").evaluate_all(
        "all => all.map(tr => [...tr.querySelectorAll('td.number:not(.median)')]"
        ".map(td => +td.textContent))"
    )
    assert [sum(column) for column in zip(*shown, strict=True)] == list(at_sixty.values())
    page.locator(".level input[type=range]").focus()
    page.keyboard.press("Home")
    assert page.evaluate("PSI.verdicts.level()") == 0.001
    assert "no p is below" in page.locator(".lead .note").inner_text()


def test_the_table_sorts_filters_and_searches(page: Any, toy_run: Run) -> None:
    turn_to(page, "channels")
    table = toy_run.channels
    scored = {
        f"{r['layer']}:{r['channel']}": r["log_psi"]
        for r in table.select(["layer", "channel", "log_psi"]).to_pylist()
    }
    best_first = sorted((k for k in scored if scored[k] is not None), key=lambda k: -scored[k])
    shown = rows(page)
    assert len(shown) == len(table)
    assert [scored[k] for k in shown[: len(best_first)]] == [scored[k] for k in best_first]
    page.click("th.log_psi button")
    assert [scored[k] for k in rows(page)[: len(best_first)]] == sorted(
        scored[k] for k in best_first
    )
    assert page.locator("th.log_psi").get_attribute("aria-sort") == "ascending"
    page.select_option("label:has-text('Layer') select", label="head")
    assert {name.partition(":")[0] for name in rows(page)} == {"head"}
    assert (
        page.locator(".found-count").inner_text() == f"{len(rows(page))} of {len(table)} channels"
    )
    page.select_option("label:has-text('Layer') select", label="all")
    page.select_option("label:has-text('Verdict') select", label="not scorable")
    assert len(rows(page)) == table["verdict"].to_pylist().count("not scorable") > 0
    page.select_option("label:has-text('Verdict') select", label="all")
    page.fill("#search", "conv2:3")
    assert rows(page) == ["conv2:3"]
    page.fill("#search", "nothing is called so")
    assert "No channel matches" in page.locator("td.none").inner_text()
    page.locator(".rows").focus()
    page.keyboard.press("Escape")
    assert len(rows(page)) == len(table)


def test_channels_without_a_concept_come_last_either_way(page: Any, toy_run: Run) -> None:
    turn_to(page, "channels")
    table = toy_run.channels.select(["layer", "channel", "n_clusters"]).to_pylist()
    nameless = {f"{r['layer']}:{r['channel']}" for r in table if not r["n_clusters"]}
    assert nameless
    orders = []
    for _ in range(2):
        page.click("th.concepts button")
        orders.append(rows(page))
        assert {*orders[-1][-len(nameless) :]} == nameless
    assert orders[0] != orders[1]


def test_a_channel_opens_by_click_by_key_and_by_link(page: Any) -> None:
    turn_to(page, "channels")
    order = rows(page)
    page.click(f"tr:has(a[title='{order[1]}']) td.n_clusters")
    wait_for_title(page, order[1])
    assert page.locator("h1").inner_text().startswith(order[1])
    page.keyboard.press("j")
    wait_for_title(page, order[2])
    page.keyboard.press("ArrowLeft")
    wait_for_title(page, order[1])
    page.click("a[rel=prev]")
    wait_for_title(page, order[0])
    assert page.locator("a[rel=prev]").count() == 0
    page.keyboard.press("Escape")
    wait_for_title(page, "Channels")
    page.locator(".rows").focus()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    wait_for_title(page, order[1])
    go(page, "conv2:3")
    assert page.locator("h1").inner_text().startswith("conv2:3")
    go(page, "conv2:99")
    assert page.locator("h1").inner_text() == "No such channel"


def test_a_channel_shows_its_numbers_groups_and_patches(page: Any, toy_run: Run) -> None:
    own = next(
        r for r in toy_run.channels.to_pylist() if (r["layer"], r["channel"]) == ("conv2", 3)
    )
    clusters = [
        c for c in toy_run.clusters.to_pylist() if (c["layer"], c["channel"]) == ("conv2", 3)
    ]
    go(page, "conv2:3")
    page.wait_for_selector(".group")
    blocks = page.locator(".block").all_inner_texts()
    for name, block in zip("sqd", blocks[1:], strict=True):
        assert f"{own[name]:.3f}".replace("-", "−") in block
        assert f"{own[f'{name}_null_mean']:.3f}".replace("-", "−") in block
        assert "chance gives" in block
    assert page.locator(".group").count() == len(clusters)
    assert page.locator(".tiles button").count() == sum(c["size"] for c in clusters)
    for cluster in clusters:
        assert cluster["concepts"][0]["concept"] in page.locator(".groups-of").inner_text()
    assert page.locator(".block svg rect.null").count() > 20  # the draws' quantiles
    bars = page.locator("section:has-text('How well each patch') svg rect")
    assert bars.count() == sum(c["size"] for c in clusters)
    loaded = (
        "e => { const i = new Image(); i.src = e.style.backgroundImage.slice(5, -2); "
        "return i.decode().then(() => i.naturalWidth); }"
    )
    assert (
        page.locator(".tiles .thumb").first.evaluate(loaded) == 10 * 32
    )  # the whole images of `head`


def test_a_patch_shows_its_image_with_the_box_drawn(page: Any, toy_run: Run) -> None:
    go(page, "conv2:3")
    page.locator(".tiles button").first.click()
    dialog = page.locator("dialog.picture")
    image = dialog.locator("img")
    assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") == 32
    box = dialog.locator("rect.box")
    drawn = [float(box.get_attribute(n)) for n in ("x", "y", "width", "height")]
    site = page.evaluate(
        "PSI.channels.details(PSI.channels.find('conv2:3')).then(d => d.patches.box[0])"
    )
    assert drawn == [site[0], site[1], site[2] - site[0], site[3] - site[1]]
    assert image.get_attribute("alt").startswith("The image ")
    first = dialog.locator("dd").first.inner_text()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("dd").first.inner_text() != first
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert page.title().startswith("conv2:3")  # Esc closed the image, not the channel


def test_search_help_and_map_work_by_keyboard(page: Any) -> None:
    page.keyboard.press("?")
    assert "Find your way" in page.locator("dialog").inner_text()
    page.keyboard.press("Escape")  # the browser closes a dialog a moment later
    page.locator("dialog").wait_for(state="detached")
    page.keyboard.press("/")
    page.keyboard.type("head")
    assert {name.partition(":")[0] for name in rows(page)} == {"head"}
    turn_to(page, "map")
    page.locator("canvas").focus()
    page.keyboard.press("ArrowLeft")
    chosen = page.locator(".tip b").inner_text()
    page.keyboard.press("Enter")
    wait_for_title(page, chosen)


def test_markup_in_names_is_text(chromium: Any, copied: Run) -> None:
    clusters = copied.clusters
    concepts = [[{"concept": NASTY, "similarity": 0.5}]] * len(clusters)
    place = clusters.column_names.index("concepts")
    kind = clusters.schema.field("concepts").type
    clusters = clusters.set_column(place, "concepts", pa.array(concepts, kind))
    write_table(copied.path / "clusters.parquet", clusters)
    sites = copied.sites
    place = sites.column_names.index("key")
    sites = sites.set_column(place, "key", pa.array([NASTY] * len(sites)))
    write_table(copied.path / "sites.parquet", sites)
    copied.manifest["model"]["name"] = NASTY
    copied.manifest["stages"]["score"]["notes"] = {"conv2": [NASTY]}
    write_json(copied.path / "manifest.json", copied.manifest)
    page = opened(chromium, report(copied.path).index.parent)
    for view in ("", "channels", "map", "evidence", "conv2:3"):
        go(page, view)
        assert NASTY in page.locator("header").inner_text()
    page.wait_for_selector(".group")
    assert NASTY in page.locator(".groups-of").inner_text()
    page.locator(".tiles button").first.click()
    assert NASTY in page.locator("dialog").inner_text()
    assert page.locator("img[src=x]").count() == 0
    assert page.faults == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_nothing_moves(chromium: Any, toy_report: Path, scheme: Any) -> None:
    narrow = {"width": 390, "height": 780}
    page = opened(chromium, toy_report, viewport=narrow, color_scheme=scheme)
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver(list => { for (const e of list.getEntries()) "
        "if (!e.hadRecentInput) window.moved += e.value; })"
        ".observe({type: 'layout-shift', buffered: true})"
    )
    for view in ("", "channels", "map", "conv2:3"):
        go(page, view)
        page.wait_for_timeout(120)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        assert page.evaluate("window.moved") < 0.1, view
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(paper[4:].split(",")[0]) < 60) == (scheme == "dark")
    assert page.faults == []
    page.context.close()


def test_on_paper_every_row_is_there_and_controls_are_not(page: Any, toy_run: Run) -> None:
    go(page, "channels")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert len(rows(page)) == len(toy_run.channels)
    assert not page.locator(".filters").is_visible()
    page.emulate_media(media="screen")
