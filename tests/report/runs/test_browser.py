"""The page in a real browser: it opens from disk, says nothing to any network, and does what it offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from loralign.report.runs.page import story_page
from loralign.report.runs.story import Story, load_story
from tests.report.runs.browser import CHROMIUM, DARK, REASON, Visit, screenshot, visit, with_self_test
from tests.report.runs.hostile import ACTIONS, write_hostile

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=REASON)

SELF_TEST = """
addEventListener("load", () => setTimeout(() => {
  const found = {};
  const by = (selector) => Array.from(document.querySelectorAll(selector));
  const plot = (key) => document.getElementById("plot-" + key);
  const shown = (element) => element.getClientRects().length > 0;
  const traces = (key) => plot(key).data.filter((trace) => trace.visible !== false).map((trace) => trace.meta);
  const heads = () => by("section.lead th[data-arm]").filter(shown).map((cell) => cell.textContent);
  const box = (kind, number) => document.querySelector(`#filters input[name=${kind}][value="${number}"]`);
  const tick = (kind, number) => box(kind, number).click();
  found.drawn = by(".plot").filter((item) => item.querySelector(".main-svg")).length;
  found.plots = by(".plot").length;
  found.wide = document.documentElement.scrollWidth;
  found.inner = innerWidth;

  found.headsBefore = heads();
  tick("arm", 3);
  found.heads = heads();
  found.bars = traces("categories-0").some((meta) => meta.arm === 3);
  found.front = [Array.from(plot("pareto-0").data[0].x), Array.from(plot("pareto-0").data[0].y)];
  found.lines = traces("curve-task-loss").map((meta) => meta.arm);
  found.maps = by("#layers [data-arm]").filter(shown).map((item) => item.dataset.arm);
  found.regressions = by(".regression").filter(shown).map((item) => item.dataset.arm);
  tick("category", 1);
  found.categories = Array.from(new Set(traces("categories-0").map((meta) => meta.category)));
  found.axis = Array.from(plot("categories-0").querySelectorAll(".ytick"), (item) => item.textContent);
  dispatchEvent(new Event("beforeprint"));
  found.paper = "paper" in document.documentElement.dataset;
  found.printedBars = traces("categories-0").some((meta) => meta.arm === 3 || meta.category === 1);
  found.unfolded = by(".regression[open]").length;
  dispatchEvent(new Event("afterprint"));
  found.afterBars = traces("categories-0").some((meta) => meta.arm === 3 || meta.category === 1);
  document.querySelector("#filters button").click();
  setTimeout(() => {
    found.headsAfter = heads();
    found.barsAfter = traces("categories-0").length;
    found.frontAfter = Array.from(plot("pareto-0").data[0].x);

    const bar = plot("categories-0").data.findIndex((trace) => trace.meta.arm === 2 && trace.meta.category === 0);
    Plotly.Fx.hover(plot("categories-0"), [{ curveNumber: bar, pointNumber: 0 }]);
    found.barTip = plot("categories-0").querySelector(".hoverlayer").textContent;
    Plotly.Fx.hover(plot("pareto-0"), [{ curveNumber: 2, pointNumber: 0 }]);
    found.pointTip = plot("pareto-0").querySelector(".hoverlayer").textContent;
    const area = plot("layers-0").querySelector(".nsewdrag");
    const { left, top, width, height } = area.getBoundingClientRect();
    const at = { clientX: left + (3.5 / 30) * width, clientY: top + (0.5 / 7) * height, bubbles: true, view: window };
    area.dispatchEvent(new MouseEvent("mousemove", at));

    const fold = document.querySelector(".regression");
    const summary = fold.querySelector("summary");
    const reveal = fold.querySelector(".reveal");
    const veil = fold.querySelector(".veil");
    const text = veil.querySelector("pre");
    found.folded = !fold.open && !text.checkVisibility();
    summary.focus();
    found.summaryFocus = document.activeElement === summary;
    summary.click();
    found.open = fold.open;
    found.blur = getComputedStyle(veil).filter;
    text.focus();
    found.veiledFocus = document.activeElement === text;
    reveal.focus();
    found.revealFocus = document.activeElement === reveal;
    reveal.click();
    found.inert = veil.inert;
    text.focus();
    found.shownFocus = document.activeElement === text;
    setTimeout(() => {
      found.cellTip = plot("layers-0").querySelector(".hoverlayer").textContent;
      // A transition advances with drawn frames, of which a busy machine draws few in the time given.
      for (const transition of veil.getAnimations()) transition.finish();
      found.clear = getComputedStyle(veil).filter;
      found.ink = getComputedStyle(document.documentElement).getPropertyValue("--page").trim();
      found.axisInk = getComputedStyle(plot("pareto-0").querySelector(".xtick text")).fill;
      const place = document.createElement("pre");
      place.id = "findings";
      place.textContent = JSON.stringify(found);
      document.body.append(place);
      if (parent !== window) parent.postMessage(place.textContent, "*");
    }, 800);
  }, 300);
}, 300));
"""

FRAME = """<!DOCTYPE html><html><body style="margin: 0">
<iframe src="page.html" style="width: 380px; height: 3000px; border: 0"></iframe>
<script>addEventListener("message", (event) => {
  const place = document.createElement("pre");
  place.id = "findings";
  place.textContent = event.data;
  document.body.append(place);
});</script></body></html>"""


@pytest.fixture(scope="module")
def tested(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    folder = tmp_path_factory.mktemp("browser")
    page = folder / "page.html"
    page.write_text(with_self_test(story_page(story), SELF_TEST), encoding="utf-8")
    return visit(page, folder)


def test_the_socket_and_the_console_hear_what_they_should(tmp_path: Path) -> None:
    """A page that does ask and does fail: without this the silence of the others would prove nothing."""
    page = tmp_path / "loud.html"
    page.write_text("<img src='http://evil.test/pixel.png'><script>nothing.there()</script>", encoding="utf-8")
    found = visit(page, tmp_path)
    assert any(data.startswith(b"GET /pixel.png") for data in found.heard)
    assert any("nothing is not defined" in line for line in found.console)


def test_it_opens_from_disk_without_a_word_on_the_console_or_to_a_network(tested: Visit) -> None:
    assert tested.console == []
    assert tested.heard == []
    assert tested.findings["drawn"] == tested.findings["plots"] == 13


def test_unticking_an_arm_takes_it_out_of_tables_charts_and_regressions(tested: Visit) -> None:
    found = tested.findings
    assert found["headsBefore"] == ["SmolLM2-135M-Instruct", "align", "plain", "guarded", "repaired"]
    assert found["heads"] == ["SmolLM2-135M-Instruct", "align", "plain", "repaired"]
    assert not found["bars"]
    assert set(found["lines"]) == {2}
    assert found["maps"] == ["1", "4"]
    assert set(found["regressions"]) == {"2", "4"}


def test_the_front_is_drawn_anew_among_the_arms_that_are_left(tested: Visit) -> None:
    assert tested.findings["front"][0] == pytest.approx([0, 8, 32])
    assert tested.findings["front"][1] == pytest.approx([0.61, 0.79, 0.83])
    assert tested.findings["frontAfter"] == pytest.approx([0, 4, 32])


def test_unticking_a_category_takes_it_out_of_the_bars(tested: Visit) -> None:
    assert 1 not in tested.findings["categories"]
    assert "hate" not in tested.findings["axis"]
    assert "violence" in tested.findings["axis"]


def test_paper_keeps_the_filter_and_unfolds_no_regression(tested: Visit) -> None:
    found = tested.findings
    assert found["paper"]
    assert not found["printedBars"]
    assert not found["afterBars"]
    assert found["unfolded"] == 0


def test_showing_all_brings_everything_back(tested: Visit) -> None:
    assert tested.findings["headsAfter"] == tested.findings["headsBefore"]
    assert tested.findings["barsAfter"] == 4 * 6 + 4


def test_tooltips_tell_the_arm_and_its_interval(tested: Visit) -> None:
    assert "plain, violence: 60.0\u00a0% [50.0, 70.0]" in tested.findings["barTip"]
    assert "plain" in tested.findings["pointTip"]
    assert "0.830 [0.806, 0.854]" in tested.findings["pointTip"]
    assert "q_proj, depth 3" in tested.findings["cellTip"]


def test_a_regression_is_folded_and_blurred_until_it_is_asked_for_by_the_keyboard_too(tested: Visit) -> None:
    found = tested.findings
    assert found["folded"]
    assert found["summaryFocus"]
    assert found["open"]
    assert found["blur"] == "blur(7px)"
    assert not found["veiledFocus"]
    assert found["revealFocus"]
    assert not found["inert"]
    assert found["clear"] == "none"
    assert found["shownFocus"]


def test_it_is_as_wide_as_a_narrow_screen(story: Story, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(with_self_test(story_page(story), SELF_TEST), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME, encoding="utf-8")
    found = visit(frame, tmp_path, size=(600, 3000))
    assert found.console == []
    assert found.findings["inner"] == 380
    assert found.findings["wide"] <= 380


def test_it_is_dark_on_a_dark_screen(story: Story, tested: Visit, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(with_self_test(story_page(story), SELF_TEST), encoding="utf-8")
    dark = visit(page, tmp_path, DARK)
    assert dark.console == []
    assert (tested.findings["ink"], dark.findings["ink"]) == ("#f6f7f9", "#12161b")
    assert tested.findings["axisInk"] != dark.findings["axisInk"]
    images = [screenshot(page, tmp_path), screenshot(page, tmp_path, DARK)]
    assert all(image.startswith(b"\x89PNG") for image in images)
    assert images[0] != images[1]


def test_hostile_text_neither_runs_nor_asks(tmp_path: Path) -> None:
    write_hostile(tmp_path / "runs", " ".join(ACTIONS))
    page = tmp_path / "page.html"
    page.write_text(story_page(load_story([tmp_path / "runs"])), encoding="utf-8")
    found = visit(page, tmp_path)
    assert "data-evil" not in found.attributes
    assert found.console == []
    assert found.heard == []
    assert "onerror=document" in found.dom  # it is there, as text
    assert found.dom.count("main-svg") > 3
