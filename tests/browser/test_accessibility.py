"""For everybody: axe-core finds no serious fault, the keyboard reaches every control, nothing is wider than a phone."""

from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from driving import open_page, watched
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
CONTROLS = "a[href], button, input, textarea, select, [tabindex]:not([tabindex='-1'])"

# Every control that can be seen and used, each with a number, so that what the keyboard visits can be ticked off.
NUMBER_CONTROLS = """controls => { document.querySelectorAll('[data-number]').forEach(old => delete old.dataset.number);
    return [...document.querySelectorAll(controls)].filter(control => {
    const style = getComputedStyle(control), group = control.type === 'radio' && document.querySelector(
        `input[type=radio][name="${CSS.escape(control.name)}"]:checked`);
    return control.checkVisibility({visibilityProperty: true}) && control.getClientRects().length && !control.disabled
        && !control.closest('[aria-hidden="true"]') && style.pointerEvents !== 'none' && (!group || group === control);
}).map((control, number) => { control.dataset.number = number;
    return control.outerHTML.slice(0, 120); }); }"""

UNFOLD = "document.querySelectorAll('button.label-wrap:not(.open)').forEach(fold => fold.checkVisibility() && fold.click())"


@contextmanager
def visit(browser, server, address, **options):
    context, foreign = watched(browser, server, **options)
    page = context.new_page()
    open_page(page, address)
    yield page
    context.close()
    assert not foreign, f"the page asked other hosts: {foreign}"


def each_tab(page: Page):
    """Open one step after the other, each with all that is folded away unfolded."""
    tabs = page.get_by_role("tab")
    for i in range(tabs.count()):
        tabs.nth(i).click()
        expect(tabs.nth(i)).to_have_attribute("aria-selected", "true")
        if tabs.nth(i).inner_text().startswith("1 "):
            expect(page.locator(".card img")).to_have_count(4)  # they come after the rest
        folded = page.locator("button.label-wrap:not(.open)").locator("visible=true")
        for _ in range(4):  # one may be inside another
            page.evaluate(UNFOLD)
            page.wait_for_timeout(200)
        expect(folded).to_have_count(0)
        yield tabs.nth(i).inner_text()


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_and_nothing_is_too_wide(finished, browser, server, scheme, size):
    found = []
    with visit(browser, server, finished, color_scheme=scheme, viewport=size, reduced_motion="reduce") as page:
        for step in each_tab(page):
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], step
            for fault in Axe().run(page).response["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    found += [f"{step}: {fault['id']}: {node['html'][:200]}" for node in fault["nodes"]]
        if size is PHONE:
            page.locator(".sidebar .toggle-button").click()
            expect(page.locator("#projects a").first).to_be_in_viewport()
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert not found, "\n".join(found)


def test_the_keyboard_reaches_every_control(finished, browser, server):
    with visit(browser, server, finished, viewport=DESK, reduced_motion="reduce") as page:
        for step in each_tab(page):
            controls = page.evaluate(NUMBER_CONTROLS, CONTROLS)
            assert len(controls) > 10
            page.evaluate("document.activeElement.blur()")
            reached, focus = set(), "document.activeElement.dataset.number"
            for _ in range(len(controls) + 80):  # the bar at the side may grow meanwhile
                page.keyboard.press("Tab")
                reached.add(page.evaluate(focus))
                if len(reached - {None}) == len(controls):
                    break
            there = page.evaluate("[...document.querySelectorAll('[data-number]')].map(control => control.dataset.number)")
            missed = [controls[int(number)] for number in there if number not in reached]
            assert len(reached) > len(controls) / 2
            assert not missed, f"{step}: {missed}"
