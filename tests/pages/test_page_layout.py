"""Layout of pages in a browser at the widths of a phone, a laptop and a wide screen."""

import html
from pathlib import Path

import pytest

from alexlab.pages.plots import new_figure, svg
from alexlab.pages.render import Interval, Link, render
from support.browser import run_in_browser

WIDTHS = (400, 1150, 1600)
LONG = "augmentation=random_resized_crop_with_color_jitter, model.norm=local_response_normalization, data.root=/a/very/long/path"
# Problems of a page: it scrolls sideways, an element leaves it, or two neighbours overlap.
PROBLEMS = """
  const problems = [], name = element => `${element.tagName}.${element.getAttribute('class') ?? ''}`;
  const root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth > width) problems.push(`scrolls sideways: ${root.scrollWidth} > ${width}`);
  for (const element of document.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !element.parentElement.closest('.wide')) problems.push(`${name(element)} leaves the page`);
  }
  for (const parent of document.querySelectorAll('body, main, section, .summary, .score, .facts, .plots, .legend, .masthead, figure, tr')) {
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
  return problems;"""


def report_page(num_settings: int) -> str:
    """Return a report with long names and values, and `num_settings` settings."""
    figure = new_figure(figsize=(5.2, 3.3))
    axes = figure.subplots()
    axes.plot([1, 2, 3], [0.1, 0.7, 0.9], "o-", gid="s0")
    axes.set(xlabel="Epoch", ylabel="Top-1 accuracy")
    plots = [(f"Effect of {LONG[:40]}", LONG, svg(figure, "effect")) for _ in range(5)]
    link = Link("12_model-alexnet_quarter_optimizer-adamw_seed-1_augmentation-none", "x/")
    columns = ["model", "Runs", "Top-1", "95 % interval", "Loss", "Training, s", "Parameters", "Status"]
    rows = [[LONG, 3, 0.5, Interval(0.4, 0.5, 0.6, (0, 1)), 2.3, 11_000.5, 57_000_000, "3 finished"]] * num_settings
    return render(
        "report.html",
        title=f"Comparison of {LONG}: 300 runs",
        kind="Report",
        date="2026-11-27 08:00",
        score=("97.31", "± 0.25 %", "Validation top-1, mean ± standard deviation of 3 runs"),
        verdict=f"No clear winner. {LONG} is highest (val top-1 0.9731), but the 95 % interval includes zero.",
        facts={"Command": f"train.py -m {LONG}", "Folder": [link], "Parameters": 57_000_000, "Path": "x" * 200},
        settings={"columns": columns, "rows": rows},
        setting_classes=["best", *[""] * (num_settings - 1)],
        colors=[0, *[None] * (num_settings - 1)],
        command=f"python src/train.py {LONG} {'y' * 150}",
        series=[LONG] * min(10, num_settings),
        num_settings=num_settings,
        plots=plots,
        run_columns=["Run", *columns, "Files"],
        run_rows=[[[link], *row, [link, link]] for row in rows],
        run_classes=[""] * num_settings,
        failures=[([link, link], "failed", "DataError: " + "z" * 300)],
    )


def test_no_page_scrolls_sideways_or_overlaps_at_any_width(tmp_path: Path) -> None:
    """One start of the browser shows all pages at all widths in frames."""
    pages = {"report": report_page(12), "one setting": report_page(1)}
    frames = [
        f'<iframe title="{name}, {width} pixels" width={width} height=800 srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    ]
    test_page = tmp_path / "frames.html"
    test_page.write_text(
        f"""{"".join(frames)}<pre id=found></pre><script>
        const problemsOf = document => {{ {PROBLEMS} }};
        window.onload = () => {{
          const frames = [...document.querySelectorAll('iframe')];
          const found = frames.map(frame => [frame.title, problemsOf(frame.contentDocument)]);
          document.getElementById('found').textContent = JSON.stringify(Object.fromEntries(found));
        }};</script>""",
        encoding="utf-8",
    )
    found = run_in_browser(test_page.as_uri(), tmp_path)
    assert found == {f"{name}, {width} pixels": [] for name in pages for width in WIDTHS}


@pytest.mark.parametrize("num_settings", [1, 12])
def test_a_report_has_one_heading_per_section_and_a_text_for_each_picture(num_settings: int) -> None:
    page = report_page(num_settings)
    assert page.count("<h1>") == page.count("<main>") == page.count("</main>") == 1
    assert page.count("<section>") == page.count("<h2>") == page.count("</section>")
    assert page.count("<svg ") == page.count("aria-label=")
    assert ("have a colour" in page) == (num_settings > 10)
    assert page.count('class="best"') == 1
