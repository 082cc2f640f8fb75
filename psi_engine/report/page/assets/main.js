"use strict";
// What stands after the # of the address; a broken escape is taken as it is.
PSI.address = (hash) => {
  try {
    return decodeURIComponent(hash);
  } catch {
    return hash;
  }
};

// Which view the address names; everything else follows from it.
PSI.route = () => {
  const main = document.getElementById("main");
  const address = PSI.address(location.hash.slice(1));
  const name = address === "" ? "overview" : address;
  const row = PSI.channels.find(address);
  const view = row >= 0 ? PSI.views.channel : Object.hasOwn(PSI.views, name) && name !== "channel" ? PSI.views[name] : null;
  main.className = `view-${row >= 0 ? "channel" : view === null ? "none" : name}`;
  main.replaceChildren();
  if (view === null) {
    main.append(PSI.el("h1", { tabindex: -1 }, "No such channel"),
      PSI.el("p", {}, `${address} is not in this run. `, PSI.el("a", { href: "#channels" }, "All channels")));
    PSI.current = { refresh() {} };
  } else {
    PSI.current = view.show(main, row);
  }
  document.title = `${view ? view.title(row) : "?"} · ${PSI.core.title} · psi-engine`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.dataset.view === (row >= 0 ? "channels" : name);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (PSI.started) {
    window.scrollTo(0, 0);
    const heading = main.querySelector("h1");
    if (heading) heading.focus({ preventScroll: true });
  }
  PSI.started = true;
};

if (PSI.core) {
  document.querySelector('nav a[data-view="evidence"]').hidden = !PSI.views.evidence.any();
  document.querySelector("[data-help]").addEventListener("click", PSI.keys.help);
  document.querySelector("[data-skip]").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  PSI.verdicts.listen(() => PSI.current.refresh());
  document.addEventListener("keydown", PSI.keys.pressed);
  window.addEventListener("hashchange", PSI.route);
  window.addEventListener("resize", () => PSI.current.resize && PSI.current.resize());
  window.addEventListener("beforeprint", () => PSI.current.print && PSI.current.print(true));
  window.addEventListener("afterprint", () => PSI.current.print && PSI.current.print(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => PSI.current.refresh());
  PSI.route();
  // How long the page took from its first byte until it could be used, for measurements.
  performance.mark("psi-ready");
} else {
  document.querySelector("#main .wait").textContent = "data/core.js is missing: make the report again.";
}
