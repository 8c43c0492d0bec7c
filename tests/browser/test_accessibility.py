"""The page with a screen reader and with the keyboard only."""

import re

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, ended

WITH_FOCUS = (
    "(document.activeElement.id || document.activeElement.className || document.activeElement.tagName.toLowerCase())"
)


async def accessibility_tree(tab: Tab) -> list[tuple[str, str]]:
    """Return (role, name) of each node of the accessibility tree, in reading order."""
    nodes = (await tab.call("Accessibility.getFullAXTree"))["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}
    order: list[tuple[str, str]] = []
    waiting = [nodes[0]]
    while waiting:
        node = waiting.pop()
        waiting += [by_id[child] for child in reversed(node.get("childIds", [])) if child in by_id]
        if not node["ignored"]:
            order.append((node["role"]["value"], node.get("name", {}).get("value", "")))
    return order


async def spoken(tab: Tab) -> str:
    """Return the recent text of the live region of the answer."""
    return " ".join(await tab.texts("#spoken p"))


async def test_screen_readers_get_the_visible_content(deployment: PageDeployment) -> None:
    """Each control has a name, question and answer have headings, and the answer is announced live."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "tools")
    await tab.until(ended("stop"))
    await tab.until("document.querySelector('#status').textContent === 'The reply has ended.'")
    await tab.click(".activity > summary")
    await tab.click(".more")
    tree = await accessibility_tree(tab)
    for role in ("button", "textbox", "combobox", "link", "DisclosureTriangle"):
        names = [name for its_role, name in tree if its_role == role]
        assert names, f"no {role}"
        assert all(names), f"a {role} has no name"
    for expected in (
        ("main", "Conversation"),
        ("heading", "You"),
        ("heading", "Agent"),
        ("textbox", "Message"),
        ("button", "Send"),
        ("combobox", "Model"),
        ("button", "Copy"),
        ("button", "Copy code"),
        ("button", "Retry"),
        ("button", "Edit"),
        ("button", "Copy as curl"),
        ("log", "Answer as it arrives"),
    ):
        assert expected in tree, expected
    headings = [name for role, name in tree if role == "heading"]
    assert headings[-2:] == ["You", "Agent"]
    texts = " ".join(name for role, name in tree if role == "StaticText")
    assert re.search(r"Tool.*count.*Arguments.*two cows", texts)
    assert "cows" in (await spoken(tab)).lower()


async def test_an_error_is_an_alert(deployment: PageDeployment) -> None:
    """An error is announced at once as an alert with a text."""
    tab = await deployment.page(AGENTSTREAM_API_KEYS="right", AGENTSTREAM_MODELS="cow-1")
    await tab.type("#prompt", "anything")
    await tab.press("Enter")
    await tab.until("document.querySelector('.failure')?.hidden === false || !document.querySelector('#notice').hidden")
    tree = await accessibility_tree(tab)
    alert = next(at for at, (role, _) in enumerate(tree) if role == "alert")
    role, text = tree[alert + 1]
    assert role == "StaticText"
    assert "key" in text.lower()


async def test_tab_reaches_every_control_in_order(deployment: PageDeployment) -> None:
    """The Tab key reaches model, key and New chat, then the controls of the exchange, then message and Send."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "echo this")
    await tab.until(ended("stop"))
    await tab.click(".more")
    await tab.evaluate("document.querySelector('#model').focus()")
    reached = []
    for _ in range(13):
        reached.append((await tab.evaluate(WITH_FOCUS)).split(" ")[0])
        await tab.press("Tab")
    exchange = ["edit", "copy", "retry", "more", "curl", "python", "copy-link", "link"]
    assert reached == ["model", "summary", "restart", *exchange, "prompt", "send"]
    outlines = "getComputedStyle(document.activeElement).outlineStyle"
    await tab.evaluate("document.querySelector('#model').focus()")
    await tab.press("Tab")
    assert await tab.evaluate(outlines) != "none", "the focus is not visible"
