"""External text stays text: it runs no script, loads nothing and does not break the page."""

import json

import pytest

from tests.browser.deployment import PageDeployment, ask, choose_other, ended, until_models
from tests.browser.page_agents import HOSTILE

FOREIGN = "script:not([src$='page/app.js']), iframe, img, svg, object, embed, [onerror], [onload], .exchange style"


async def test_hostile_text_in_every_field_stays_text(deployment: PageDeployment) -> None:
    """Scripts, handlers, script links and huge words in any field are shown as text, also at phone width."""
    await deployment.worker("hostile", AGENTSTREAM_MODELS="hostile")
    tab = await deployment.page()
    await tab.set_viewport(width=360, height=740)
    await ask(tab, HOSTILE.replace("\x00", ""))
    await tab.until(ended("with an error"))
    await tab.evaluate("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
    assert await tab.evaluate("window.ran ?? null") is None
    assert await tab.evaluate(f"document.querySelectorAll({json.dumps(FOREIGN)}).length") == 0
    links = await tab.evaluate("[...document.querySelectorAll('.exchange a')].map((a) => a.protocol)")
    assert set(links) == {"https:", "http:"}  # the image links to https, the run link to http
    for place in (".question", ".step .detail", ".step pre", ".thought", ".answer", ".failure"):
        assert "<script>" in await tab.evaluate(f"document.querySelector('{place}').textContent"), place
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 360
    await tab.reload()
    await tab.until(ended("with an error"))
    assert await tab.evaluate("window.ran ?? null") is None
    assert tab.complaints == []


async def test_hostile_model_names_and_errors_stay_text(deployment: PageDeployment) -> None:
    """Hostile model names and error messages of the server are shown as text."""
    name = "<img src=x onerror=window.ran=1>"
    await deployment.worker("echo")
    tab = await deployment.page(AGENTSTREAM_MODELS=name)
    await until_models(tab)
    assert await tab.evaluate("document.querySelector('#model').value") == name
    assert await tab.texts("#model option") == [name, "Another model …"]
    assert await tab.texts("#agents button") == [name]
    closed = await deployment.page(AGENTSTREAM_AGENTS="good=builtin@nobody")
    await closed.until("document.querySelector('#notice').textContent.includes('No agent is running')")
    await choose_other(closed, name)
    await closed.type("#prompt", "hello")
    await closed.press("Enter")
    await closed.until(ended("with an error"))
    assert name in await closed.text(".failure")
    for page in (tab, closed):
        assert await page.evaluate("window.ran ?? null") is None
        assert await page.evaluate(f"document.querySelectorAll({json.dumps(FOREIGN)}).length") == 0


async def test_the_content_security_policy_holds(deployment: PageDeployment) -> None:
    """The browser refuses HTML from strings, inline scripts and connections to other servers."""
    await deployment.worker()
    tab = await deployment.page()
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.createElement('b').setAttribute('onclick', 'window.ran = 1')",
        "new DOMParser().parseFromString('<b>x</b>', 'text/html')",
        "document.createElement('script').text = 'window.ran = 1'",
    ):
        refused = f"(() => {{ try {{ {attempt}; return ''; }} catch (error) {{ return error.name; }} }})()"
        assert await tab.evaluate(refused) == "TypeError", attempt
    outside = "fetch('http://127.0.0.1:9/').then(() => 'went', (error) => error.name)"
    assert await tab.evaluate(outside) == "TypeError"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


COPY = '<button class="copy-code" type="button" aria-label="Copy code">Copy</button>'
MARKDOWN = [
    ("plain", "<p>plain</p>"),
    ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
    ("# One\n###### Six ##", "<h3>One</h3><h6>Six</h6>"),
    (
        "**b** *i* ~~d~~ `c` ``a`b``",
        "<p><strong>b</strong> <em>i</em> <del>d</del> <code>c</code> <code>a`b</code></p>",
    ),
    ("2 * 3 * 4, snake_case_name, **open", "<p>2 * 3 * 4, snake_case_name, **open</p>"),
    ("***x* y**", "<p><strong><em>x</em> y</strong></p>"),
    (r"\*no\*", "<p>*no*</p>"),
    ("- a\n- b\n  - c\n    more\n- d", "<ul><li>a</li><li>b<ul><li>c\nmore</li></ul></li><li>d</li></ul>"),
    ("3. x\n\n4. y\n\nz", '<ol start="3"><li>x</li><li>y</li></ol><p>z</p>'),
    ("- a\n\n  b\n\n- c\n\n---", "<ul><li>a<p>b</p></li><li>c</li></ul><hr>"),
    ("- a\n- b\nAfter", "<ul><li>a</li><li>b</li></ul><p>After</p>"),
    ("1. a\n   - b\nAfter\n\nEnd", '<ol start="1"><li>a<ul><li>b</li></ul></li></ol><p>After</p><p>End</p>'),
    ("* a\n\n After", "<ul><li>a</li></ul><p>After</p>"),
    ("text\n- item", "<p>text</p><ul><li>item</li></ul>"),
    ("> q\n> > r", "<blockquote><p>q</p><blockquote><p>r</p></blockquote></blockquote>"),
    ("---", "<hr>"),
    (
        "```py\n<b>\n\nx\n```\nend",
        (
            f'<figure class="code"><figcaption><span>py</span>{COPY}</figcaption>'
            "<pre><code>&lt;b&gt;\n\nx</code></pre></figure><p>end</p>"
        ),
    ),
    (
        "```js\nlet a = 'b'; // 1\n```",
        (
            f'<figure class="code"><figcaption><span>js</span>{COPY}</figcaption>'
            '<pre><code><span class="code-keyword">let</span> a = <span class="code-string">\'b\'</span>; '
            '<span class="code-comment">// 1</span></code></pre></figure>'
        ),
    ),
    (
        "~~~\nopen",
        f'<figure class="code"><figcaption><span></span>{COPY}</figcaption><pre><code>open</code></pre></figure>',
    ),
    (
        "|a|b|c|d|\n|-|:-:|--:|:--|\n|`x`|y\\|z|1|l|",
        (
            '<div class="table"><table><thead><tr>'
            '<th>a</th><th class="center">b</th><th class="right">c</th><th class="left">d</th></tr></thead>'
            '<tbody><tr><td><code>x</code></td><td class="center">y|z</td><td class="right">1</td>'
            '<td class="left">l</td></tr></tbody></table></div>'
        ),
    ),
    ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
    ("[x](/relative) <b>&amp;</b>", "<p>[x](/relative) &lt;b&gt;&amp;amp;&lt;/b&gt;</p>"),
]


async def test_markdown_is_rendered(deployment: PageDeployment) -> None:
    """Each Markdown construct gives its elements, at once or character by character, and HTML stays text."""
    tab = await deployment.page()
    for source, expected in MARKDOWN:
        for pieces in (1, len(source)):
            drawn = await tab.evaluate(
                f"""import('/page/markdown.js').then(({{ MarkdownView }}) => {{
                    const root = document.createElement('div'), view = new MarkdownView(root);
                    const source = {json.dumps(source)};
                    for (let part = 1; part <= {pieces}; part += 1)
                        view.show(source.slice(0, Math.ceil(source.length * part / {pieces})));
                    return root.innerHTML.replaceAll(/ (?:dir="auto"|tabindex="0")/g, '');
                }})"""
            )
            assert drawn == expected, (source, pieces)
    link = await tab.evaluate(
        """import('/page/markdown.js').then(({ render }) => {
            const link = render('see [a **b**](https://x.org/y) ').querySelector('a');
            return [link.href, link.textContent, link.rel, link.target];
        })"""
    )
    assert link == ["https://x.org/y", "a b", "noopener noreferrer nofollow", "_blank"]


@pytest.mark.parametrize(
    "unit", ["[", "*a ", "`", "**", "> ", "- ", "|-", "![](", "http://", "_ ", "\\", "~~~\n", "- a\n\n"]
)
async def test_repeated_marks_render_quickly(deployment: PageDeployment, unit: str) -> None:
    """A text of 100,000 characters of one repeated mark is rendered within the time limit of the test."""
    tab = await deployment.page()
    drawn = await tab.evaluate(
        f"import('/page/markdown.js').then(({{ render }}) => render({json.dumps(unit)}.repeat({100_000 // len(unit)}))"
        ".textContent.length >= 0)"
    )
    assert drawn


@pytest.mark.parametrize("unit", ['"', "'", "`", "/*", "*/", "#", " #", "<!--", "'''", "\\", "0.", "$", "--", '"\\'])
async def test_repeated_marks_are_coloured_quickly(deployment: PageDeployment, unit: str) -> None:
    """Code of 50,000 characters of one repeated mark is coloured within the time limit, and its text is unchanged."""
    tab = await deployment.page()
    same = await tab.evaluate(
        f"""import('/page/highlight.js').then(({{ highlight }}) => {{
            const code = {json.dumps(unit)}.repeat({50_000 // len(unit)});
            const languages = ['js', 'python', 'sh', 'sql', 'yaml', 'json', 'html', 'css', 'constructor', ''];
            return languages.every((language) => {{
                const drawn = document.createElement('code');
                highlight(drawn, code, language);
                return drawn.textContent === code;
            }});
        }})"""
    )
    assert same
