"use strict";
// Data arrive as scripts that call PSI.receive: a page opened from disk may not fetch files.
window.PSI = (() => {
  const held = new Map();
  const loading = new Map();

  function receive(name, value) {
    held.set(name, value);
  }

  // The value of data/NAME.js, loaded once.
  function load(name) {
    if (held.has(name)) return Promise.resolve(held.get(name));
    if (!loading.has(name)) {
      loading.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => resolve(held.get(name));
        script.onerror = () => {
          loading.delete(name);
          reject(new Error(`data/${name}.js is missing: make the report again`));
        };
        document.head.append(script);
      }));
    }
    return loading.get(name);
  }

  // Elements are made of text nodes and attributes, never of markup: names from data stay text.
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
    return node;
  }

  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const say = (text) => { document.querySelector(".status").textContent = text; };

  return { receive, load, el, svg, say, get core() { return held.get("core"); }, views: {} };
})();

// What each channel is called, and where its page is.
PSI.channels = {
  get count() { return PSI.core.columns.layer.length; },

  value: (name, row) => (PSI.core.columns[name] ? PSI.core.columns[name][row] : null),

  layer: (row) => PSI.core.layers[PSI.core.columns.layer[row]],

  address: (row) => `${PSI.channels.layer(row)}:${PSI.core.columns.channel[row]}`,

  link: (row) => `#${encodeURIComponent(PSI.channels.layer(row))}:${PSI.core.columns.channel[row]}`,

  concepts: (row) => PSI.core.columns.concepts[row].map((i) => (i < 0 ? null : PSI.core.names[i])),

  find(address) {
    if (!this.rows) {
      this.rows = new Map();
      for (let row = 0; row < this.count; row++) this.rows.set(this.address(row), row);
    }
    return this.rows.has(address) ? this.rows.get(address) : -1;
  },

  async details(row) {
    const size = PSI.core.shard;
    const shard = await PSI.load(`channels-${Math.floor(row / size)}`);
    return { ...shard.rows[row % size], strings: shard.strings };
  },
};
