"""Pages from templates: values are escaped, nothing is missing, and they are complete without a network."""

import re
from pathlib import Path

import pytest
from jinja2 import ChoiceLoader, DictLoader, UndefinedError

from alexlab.pages import render as module
from alexlab.pages.render import Interval, Link, column_digits, file_links, format_value, render

TEMPLATES = Path(module.__file__).parent / "templates"


def page(monkeypatch, content: str, **values) -> str:
    """Return a page whose template extends `base.html`."""
    start = '{% from "macros.html" import table, links, plot, image %}{% extends "base.html" %}{% block content %}'
    pages = DictLoader({"page.html": f"{start}{content}{{% endblock %}}"})
    monkeypatch.setattr(module._ENVIRONMENT, "loader", ChoiceLoader([pages, module._ENVIRONMENT.loader]))
    return render("page.html", **values)


def test_values_are_escaped_and_hidden_characters_are_visible(monkeypatch):
    text = page(monkeypatch, '{{ name }}{{ image("data:,", name) }}', title="<b>", name="\"'<em>\n\u202e")
    assert "<title>&lt;b&gt;</title>" in text and "<h1>&lt;b&gt;</h1>" in text
    escaped = "&#34;&#39;&lt;em&gt;\\n\\u202e"
    assert escaped in text and f'alt="{escaped}" title="{escaped}"' in text
    assert "<em>" not in text and "\u202e" not in text


def test_a_missing_value_is_an_error(monkeypatch):
    with pytest.raises(UndefinedError, match="title"):
        page(monkeypatch, "")
    with pytest.raises(UndefinedError, match="missing"):
        page(monkeypatch, "{{ missing }}", title="t")


def test_cells_are_numbers_links_or_text(monkeypatch):
    rows = [[0.12345, 12345, None, "<", [Link("a&b", "a%26b"), Link("c", "c")]], [True, 2.0, "", "1", []]]
    text = page(
        monkeypatch,
        "{{ table(columns, rows, classes) }}",
        title="t",
        columns=[*"vwxyz"],
        rows=rows,
        classes=["best", ""],
    )
    assert (
        '<tr class="best"><td class="n" data-v="0.12345">0.1235</td><td class="n" data-v="12345">12,345.0</td>' in text
    )
    assert '<td>-</td><td>&lt;</td><td><a href="a%26b">a&amp;b</a> <a href="c">c</a></td></tr>' in text
    assert '<td class="n">True</td><td class="n" data-v="2.0">2.0</td><td></td><td>1</td><td></td></tr>' in text


def test_links_are_relative_and_keep_any_bytes(tmp_path):
    file = tmp_path / "run" / "ä \udcff#.log"
    assert file_links([file], tmp_path / "report") == [Link("ä \udcff#.log", "../run/%C3%A4%20%FF%23.log")]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1.0, "1.0000"), (0.12345, "0.1235"), (12.5, "12.5"), (1234, "1,234"), (True, "True"), ("a", "a")],
)
def test_values_in_tables(value, text):
    assert format_value(value) == text


def test_templates_load_nothing_from_elsewhere():
    texts = [path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.iterdir())]
    assert len(texts) >= 6
    for text in texts:
        assert not re.search(r"https?:|//[a-z]+\.|@import|<link|\bsafe\b|autoescape", text)


def test_floats_of_a_column_have_the_same_digits_and_text_columns_have_none():
    rows = [[0.5, 12.0, 3, "a", None], [1.0, 1151.7, 1000, "b", None], [0.12345, None, 7, 1.0, None]]
    digits = column_digits(rows, ["Top-1", "Size", "Runs", "Any", "None"])
    assert digits == [4, 1, 0, 4, None]
    assert column_digits([[0.9, 0.5], [1.0, 1.0]], ["Training, s", "Images/s"]) == [1, 1]
    assert [format_value(row[1], digits[1]) for row in rows] == ["12.0", "1,151.7", "-"]
    assert column_digits([], ["a", "b"]) == [None, None]


def test_an_interval_is_drawn_on_the_scale_of_its_column(monkeypatch):
    cells = [[Interval(0.1, 0.2, 0.3, (0.1, 0.5))], [Interval(0.4, 0.4, 0.4, (0.4, 0.4))]]
    text = page(monkeypatch, "{{ table(['top-1'], rows) }}", title="t", rows=cells)
    assert '<line x1="2.0" x2="50.0"' in text and 'aria-label="0.1000 to 0.3000"' in text
    assert 'x1="50.0" x2="50.0"' in text, "an interval of no width lies in the middle"


def test_the_parts_of_a_page_escape_their_values(monkeypatch):
    evil = "<script>'\""
    text = page(
        monkeypatch,
        """{% from "macros.html" import summary, command, legend %}{{ summary("97.4", "%", evil, evil, facts) }}
        {{ command(evil) }}{{ legend([evil]) }}{{ plot("data:,", evil, evil) }}""",
        title="t",
        evil=evil,
        facts={evil: evil, "runs": 3000, "folder": [Link(evil, "x")]},
    )
    assert text.count("&lt;script&gt;&#39;&#34;") == 10
    assert text.count("<script>") == 1, "the page's own"
    assert "<dd>3,000</dd>" in text and '<a href="x">' in text
