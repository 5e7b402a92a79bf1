"""A real browser shows each report whole: nothing is cut off, covered or fetched.

About ten seconds after the reports are written.
"""

import shutil

import pytest

pytest.importorskip("playwright", reason="playwright drives the browser; pip install playwright")
from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)

# Text that is wider than its box, or that shares pixels with text elsewhere. What scrolls inside a
# card of its own may be wider than the card.
LAYOUT = """() => {
  const name = e => `${e.tagName}: ${e.textContent.trim().slice(0, 40)}`;
  const shown = [...document.body.querySelectorAll('*')].filter(e =>
    e.checkVisibility() && !e.closest('svg, .hidden, details:not([open]) > :not(summary)'));
  const clipped = shown.filter(e => !e.matches('.scroll') && e.scrollWidth > e.clientWidth + 1
    && getComputedStyle(e).display !== 'inline').map(name);
  const outside = shown.filter(e => !e.closest('.scroll')
    && e.getBoundingClientRect().right > innerWidth + 0.5).map(name);
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || !shown.includes(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width > 1) boxes.push({box, parent, scroll: parent.closest('.scroll')});
  }
  const overlapping = [];
  boxes.forEach(({box: a, parent: p, scroll: s}, i) => boxes.slice(i + 1).forEach(
    ({box: b, parent: q, scroll: t}) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (s === t && wide > 1 && high > 3 && p !== q) overlapping.push([name(p), name(q)]);
    }));
  return {clipped, outside, overlapping,
    page: [document.documentElement.scrollWidth, innerWidth],
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)};
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(
    scope="module", params=["classified", "regressed", "lonely", "hostile", "decided", "crowded"]
)
def index(request):
    found = request.getfixturevalue(request.param)
    return (found[-1] if isinstance(found, tuple) else found).index


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_shown_whole_and_by_itself(browser, index, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(index.as_uri())
    found = page.evaluate(LAYOUT)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [index.as_uri()]
    assert found["page"] == [width, width], "the page scrolls sideways"
    assert found["clipped"] == found["outside"] == found["broken"] == []
    assert found["overlapping"] == []
    brightness = sum(map(int, background.removeprefix("rgb(").removesuffix(")").split(",")))
    assert (brightness > 600) == (scheme == "light")


@pytest.mark.slow
def test_print_opens_what_the_page_folds_except_the_source(browser, index):
    page = browser.new_page()
    page.goto(index.as_uri())
    page.emulate_media(media="print")
    found = page.evaluate(
        """[...document.querySelectorAll('details')].map(e => [
          e.className, e.offsetHeight > 2 * e.firstElementChild.offsetHeight, e.offsetHeight])"""
    )
    page.close()
    assert found[-1] == ["source", False, 0]
    assert len(found) > 3
    assert all(is_open for _, is_open, _ in found[:-1])
