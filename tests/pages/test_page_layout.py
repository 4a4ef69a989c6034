"""Layout of pages in a browser at the widths of a phone, a laptop and a wide screen."""

import html
from pathlib import Path

import pytest

from support.browser import run_in_browser
from support.example_pages import (
    check_page,
    compare_page,
    demo_page,
    evaluation_page,
    gallery_page,
    index_page,
    labels_page,
    report_page,
    reproduce_page,
)

WIDTHS = (400, 1150, 1600)
# Problems of a page: it scrolls sideways, an element leaves it, two neighbours overlap, or the contrast of a text is below 4.5,
# the minimum of WCAG 2.2, criterion 1.4.3.
PROBLEMS = """
  const problems = [], name = element => `${element.tagName}.${element.getAttribute('class') ?? ''}`;
  const root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth > width) problems.push(`scrolls sideways: ${root.scrollWidth} > ${width}`);
  for (const element of document.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !element.parentElement.closest('.wide, .matrix')) problems.push(`${name(element)} leaves the page`);
  }
  for (const parent of document.querySelectorAll('body, main, section, .summary, .score, .facts, .plots, .legend, .masthead, .side, .row, .groups, .group, .controls, .bar, figure, tr')) {
    const boxes = [...parent.children].map(child => [child, child.getBoundingClientRect()]).filter(([, box]) => box.width * box.height);
    boxes.forEach(([first, a], number) => boxes.slice(number + 1).forEach(([second, b]) => {
      if (a.right - 1 > b.left && b.right - 1 > a.left && a.bottom - 1 > b.top && b.bottom - 1 > a.top)
        problems.push(`${name(first)} overlaps ${name(second)} in ${name(parent)}`);
    }));
  }
  for (const figure of document.querySelectorAll('svg[viewBox]:not(.interval)')) {
    const frame = figure.getBoundingClientRect();
    for (const text of figure.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 2 || box.right > frame.right + 2) problems.push(`${text.textContent} leaves its plot`);
    }
  }
  const luminance = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(level => level / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    const color = element ? window.getComputedStyle(element).backgroundColor : 'rgb(255, 255, 255)';
    return color.endsWith(', 0)') ? background(element.parentElement) : color;
  };
  const texts = [...document.querySelectorAll('body *')].filter(element =>
    [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) && element.getClientRects().length);
  for (const element of texts.filter(element => !element.closest('svg, script'))) {
    const levels = [window.getComputedStyle(element).color, background(element)].map(luminance);
    const contrast = (Math.max(...levels) + 0.05) / (Math.min(...levels) + 0.05);
    if (contrast < 4.5) problems.push(`${name(element)} has a contrast of ${contrast.toFixed(1)}`);
  }
  if (document.getElementById('drop') && !document.querySelector('.bar')) problems.push('the demo shows no prediction');
  const isDark = luminance(background(document.body)) < 0.1;
  if (isDark !== (window.frameElement.style.colorScheme === 'dark')) problems.push(isDark ? 'is dark' : 'is light');
  return [...new Set(problems)];"""


def test_no_page_scrolls_sideways_overlaps_or_has_pale_text(tmp_path: Path) -> None:
    """One start of the browser shows all pages in frames, at all widths in light and on a phone also in dark colours."""
    pages = {
        "report": report_page(12),
        "report of one setting": report_page(1),
        "index": index_page(),
        "evaluation": evaluation_page(tmp_path, kind="Evaluation", num_classes=40),
        "explanation": evaluation_page(tmp_path, kind="Explanation", num_classes=3),
        "comparison": compare_page(tmp_path),
        "gallery": gallery_page(tmp_path),
        "check": check_page(tmp_path),
        "labels": labels_page(tmp_path),
        "reproduction": reproduce_page(),
        "demo": demo_page(),
    }
    views = [(width, "light") for width in WIDTHS] + [(WIDTHS[0], "dark")]
    frames = [
        f'<iframe title="{name}, {width} pixels, {scheme}" width={width} height=800 style="color-scheme: {scheme}" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width, scheme in views
    ]
    test_page = tmp_path / "frames.html"
    test_page.write_text(
        f"""{"".join(frames)}<pre id=found></pre><script>
        const problemsOf = (document, window) => {{ {PROBLEMS} }};
        window.onload = () => {{
          const frames = [...document.querySelectorAll('iframe')];
          const found = frames.map(frame => [frame.title, problemsOf(frame.contentDocument, frame.contentWindow)]);
          document.getElementById('found').textContent = JSON.stringify(Object.fromEntries(found));
        }};</script>""",
        encoding="utf-8",
    )
    found = run_in_browser(test_page.as_uri(), tmp_path)
    assert found == {f"{name}, {width} pixels, {scheme}": [] for name in pages for width, scheme in views}


@pytest.mark.parametrize("num_settings", [1, 12])
def test_a_report_has_one_heading_per_section_and_a_text_for_each_picture(num_settings: int) -> None:
    page = report_page(num_settings)
    assert page.count("<h1>") == page.count("<main>") == page.count("</main>") == 1
    assert page.count("<section>") == page.count("<h2>") == page.count("</section>")
    assert page.count("<svg ") == page.count("aria-label=")
    assert ("are coloured" in page) == (num_settings > 10)
    assert page.count('class="best"') == 1
