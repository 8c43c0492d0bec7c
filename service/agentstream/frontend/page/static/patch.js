// Changes drawn nodes into newly drawn ones, so that a growing answer keeps the reader's selection, focus and scrolling.

/** Make the children of `parent`, from the one at `index` on, equal to those of `fresh`. Equal nodes stay in place. */
export function patchChildren(parent, fresh, index = 0) {
  for (let node = fresh.firstChild, at = index; node; at += 1) {
    const next = node.nextSibling;
    const drawn = parent.childNodes[at];
    if (!drawn) parent.append(node);
    else if (!patched(drawn, node)) drawn.replaceWith(node);
    node = next;
  }
}

/** Remove the children of `parent` from the one at `count` on. */
export function keepChildren(parent, count) {
  while (parent.childNodes.length > count) parent.lastChild.remove();
}

/** Make `drawn` equal to `fresh`. Returns false if it is another kind of node. */
function patched(drawn, fresh) {
  if (drawn.nodeName !== fresh.nodeName) return false;
  if (drawn.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(drawn.data)) drawn.appendData(fresh.data.slice(drawn.data.length));
    else drawn.data = fresh.data;
    return true;
  }
  for (const name of drawn.getAttributeNames()) if (!fresh.hasAttribute(name)) drawn.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (drawn.getAttribute(name) !== value) drawn.setAttribute(name, value);
  }
  const count = fresh.childNodes.length;
  patchChildren(drawn, fresh);
  keepChildren(drawn, count);
  return true;
}
