"""The page without eyes and without a mouse: what the browser tells assistive technology, and where Tab goes."""

import re

from tests.browser.chromium import Tab
from tests.browser.deployment import PageDeployment, ask, ended

WITH_FOCUS = (
    "(document.activeElement.id || document.activeElement.className || document.activeElement.tagName.toLowerCase())"
)


async def told(tab: Tab) -> list[tuple[str, str]]:
    """Return role and name of everything in the accessibility tree, in the order it is read."""
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
    """Return what the live regions have said last."""
    return " ".join(await tab.texts("#spoken p"))


async def test_a_screen_reader_is_told_what_is_seen(deployment: PageDeployment) -> None:
    """Every control has a name, question and answer have headings, and the answer is said as it arrives."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "tools")
    await tab.until(ended("stop"))
    await tab.until("document.querySelector('#status').textContent === 'The reply has ended.'")
    tree = await told(tab)
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
        ("button", "Copy as curl"),
        ("log", "Answer as it arrives"),
    ):
        assert expected in tree, expected
    headings = [name for role, name in tree if role == "heading"]
    assert headings[-2:] == ["You", "Agent"]
    texts = " ".join(name for role, name in tree if role == "StaticText")
    assert re.search(r"Tool.*count.*Arguments.*two cows", texts)
    assert "cows" in (await spoken(tab)).lower()


async def test_a_failure_is_an_alert(deployment: PageDeployment) -> None:
    """What went wrong is announced at once, in words."""
    tab = await deployment.page(AGENTSTREAM_API_KEYS="right", AGENTSTREAM_MODELS="cow-1")
    await tab.type("#prompt", "anything")
    await tab.press("Enter")
    await tab.until("document.querySelector('.failure')?.hidden === false || !document.querySelector('#notice').hidden")
    tree = await told(tab)
    alert = next(at for at, (role, _) in enumerate(tree) if role == "alert")
    role, said = tree[alert + 1]
    assert role == "StaticText"
    assert "key" in said.lower()


async def test_tab_reaches_every_control_in_the_order_they_stand(deployment: PageDeployment) -> None:
    """A keyboard alone is enough: message, model, key and Send in turn, then the exchange's own controls."""
    await deployment.worker()
    tab = await deployment.page()
    await ask(tab, "echo this")
    await tab.until(ended("stop"))
    await tab.evaluate("document.querySelector('#prompt').focus()")
    reached = []
    for _ in range(3):
        await tab.press("Tab")
        reached.append(await tab.evaluate(WITH_FOCUS))
    assert reached == ["model", "summary", "send"]
    await tab.evaluate("document.querySelector('#restart').focus()")
    reached = []
    for _ in range(8):
        await tab.press("Tab")
        reached.append(await tab.evaluate(WITH_FOCUS))
    assert [name for name in reached if name in {"curl", "python", "prompt"}] == ["curl", "python", "prompt"]
    outlines = "getComputedStyle(document.activeElement).outlineStyle"
    await tab.evaluate("document.querySelector('#model').focus()")
    await tab.press("Tab")
    assert await tab.evaluate(outlines) != "none", "the focus cannot be seen"
