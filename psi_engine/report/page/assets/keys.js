"use strict";
// Keys that work everywhere, and what they are.
PSI.keys = (() => {
  const { el } = PSI;
  const KEYS = [
    ["/", "search a concept or a channel"],
    ["j k", "next and previous channel, in the table or on a channel’s page"],
    ["↑ ↓", "go through the table; on the map ↑ ↓ ← → go to the nearest channel"],
    ["← →", "previous and next channel; in an open image, previous and next patch"],
    ["Enter", "open the chosen channel"],
    ["Esc", "back to the table; close an image; clear the filters"],
    ["?", "this list"],
  ];

  function help() {
    const dialog = el("dialog", { class: "helping", "aria-labelledby": "help-title" },
      el("h2", { id: "help-title" }, "Find your way"),
      el("p", {}, "Start with a channel under “Where to look first”. Its page says what it responds to and how sure that is. Every page has its own link."),
      el("dl", { class: "keys" }, KEYS.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
      el("p", { class: "steps" }, el("button", { type: "button", onclick: () => dialog.close() }, "Close")));
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("keydown", (event) => event.stopPropagation());
    document.body.append(dialog);
    dialog.showModal();
  }

  const typing = (node) => node.closest("input:not([type=range]):not([type=radio]), select, textarea") !== null;

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (typing(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") { search(); event.preventDefault(); return; }
    if (event.key === "?") { help(); event.preventDefault(); return; }
    if (event.target.matches("input") && event.key.startsWith("Arrow")) return;
    if (PSI.current.key && PSI.current.key(event)) event.preventDefault();
  }

  function search() {
    if (!document.getElementById("search")) {
      history.pushState(null, "", "#channels"); // a change of the hash would draw the view again, and take the focus
      PSI.route();
    }
    document.getElementById("search").focus();
  }

  return { help, pressed };
})();
