"""Pages: everything is escaped, nothing is requested, and the policy allows the page's own script."""

import base64
import hashlib
import re

import jinja2
import markupsafe
import pytest

from slicemill.common import html


@pytest.fixture
def page(monkeypatch):
    """Render a page of one body."""

    def rendered(body, **values):
        source = (
            '{% extends "common/templates/page.html" %}{% import "common/templates/parts.html" as parts %}'
            "{% block body %}" + body + "{% endblock %}"
        )
        loaders = [jinja2.DictLoader({"t.html": source}), html._environment().loader]
        environment = html._environment().overlay(loader=jinja2.ChoiceLoader(loaders))
        monkeypatch.setattr(html, "_environment", lambda: environment)
        return html.render("t.html", title="A <title>", **values).decode()

    return rendered


def test_values_are_escaped_and_markup_is_not(page):
    shown = page(
        "{{ name }} {{ parts.table(['<h>'], [['<b>&'], [link]]) }}", name="<i>", link=markupsafe.Markup("<a>x</a>")
    )
    assert "<title>A &lt;title&gt;</title>" in shown
    assert "&lt;i&gt;" in shown
    assert '<th scope="col">&lt;h&gt;</th>' in shown
    assert "<td>&lt;b&gt;&amp;</td>" in shown
    assert "<td><a>x</a></td>" in shown


def test_numbers_are_aligned_and_sorted_as_numbers(page):
    shown = page("{{ parts.table(['n', 'ok'], [[0.98765, true], [none, false]], sortable=true) }}")
    assert '<table class="sortable">' in shown
    assert '<td class="number" data-value="0.98765">0.988</td><td>yes</td>' in shown
    assert '<td class="number" data-value="">-</td><td>no</td>' in shown


def test_the_policy_allows_the_script_that_is_in_the_page(page):
    shown = page("{{ parts.cards([('lesions', 3)]) }}")
    (script,) = re.findall(r"<script>(.*?)</script>", shown, re.DOTALL)
    allowed = re.search(r"script-src 'sha256-([^']+)'", shown)[1]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    assert "<div><b>3</b><span>lesions</span></div>" in shown
    assert "http" not in shown.replace("http-equiv", "")


def test_a_missing_value_is_an_error(page):
    with pytest.raises(jinja2.UndefinedError, match="nothing"):
        page("{{ nothing }}")


def test_a_picture_is_embedded_or_left_out(page, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    shown = page(
        "{{ parts.picture(a, 'the <alt>') }}{{ parts.picture(b, 'none') }}", a=tmp_path / "a.png", b=tmp_path / "b.png"
    )
    assert '<a class="picture" href="a.png"><img alt="the &lt;alt&gt;" src="data:image/png;base64,iVBORw==">' in shown
    assert "none" not in shown.split("<body>")[1]
