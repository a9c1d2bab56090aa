(function () {
  "use strict";
  const root = document.documentElement;
  window.addEventListener("error", function (event) { root.dataset.error = event.message; });
  document.addEventListener("securitypolicyviolation", function (event) { root.dataset.violation = event.violatedDirective; });
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = function (id) { return document.getElementById(id); };
  const colour = function (name) { return getComputedStyle(root).getPropertyValue("--" + name).trim(); };
  const shapes = { ">": "triangle", "o": "circle", "-": "none" };

  // Everything from the file goes in as text: no name can become markup.
  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) { made.textContent = text; }
    if (kind) { made.className = kind; }
    return made;
  }

  const wider = data.weighed ? function (edge) { return 1.2 + 3.8 * (edge.weight || 0); } : function () { return 2; };
  const elements = data.nodes.map(function (node) {
    return { group: "nodes", data: Object.assign({ id: "n" + node.name, label: node.lines.join("\n") }, node), position: { x: node.x, y: node.y } };
  }).concat(data.edges.map(function (edge, index) {
    return { group: "edges", classes: edge.status + (edge.bends ? " bent" : ""), data: {
      id: "e" + index, source: "n" + edge.from, target: "n" + edge.to, label: edge.label, wide: wider(edge), index: index,
      first: shapes[edge.marks[0]], last: shapes[edge.marks[1]],
      distances: edge.bends ? edge.bends.distances : [0], weights: edge.bends ? edge.bends.weights : [0.5] } };
  }));

  function style() {
    const edge = colour("edge"), warm = colour("warm"), ink = colour("ink"), card = colour("card"), accent = colour("accent");
    return [
      { selector: "node", style: { shape: "round-rectangle", width: "data(width)", height: "data(height)", label: "data(label)",
        "text-wrap": "wrap", "text-valign": "center", "text-halign": "center", "font-size": 13, "font-weight": 600, "line-height": 1.2,
        "font-family": "ui-sans-serif, system-ui, Segoe UI, Helvetica, Arial, sans-serif", color: ink,
        "background-color": colour("box"), "border-color": colour("boxline"), "border-width": 1.3 } },
      { selector: "node[role = 'treatment']", style: { "background-color": colour("treated"), "border-color": accent, "border-width": 2.5 } },
      { selector: "node[role = 'outcome']", style: { "background-color": colour("outcome"), "border-color": colour("good"), "border-width": 2.5, "border-style": "double" } },
      { selector: "edge", style: { "curve-style": "straight", width: "data(wide)", "line-color": edge, label: "data(label)", "font-size": 11,
        color: colour("soft"), "text-background-color": card, "text-background-opacity": 1, "text-background-padding": 2, "text-background-shape": "round-rectangle",
        "source-arrow-shape": "data(first)", "target-arrow-shape": "data(last)", "source-arrow-color": edge, "target-arrow-color": edge,
        "arrow-scale": 1.15, "min-zoomed-font-size": 5 } },
      { selector: "edge[first = 'circle']", style: { "source-arrow-fill": "hollow" } },
      { selector: "edge[last = 'circle']", style: { "target-arrow-fill": "hollow" } },
      { selector: "edge.bent", style: { "curve-style": "round-segments", "segment-distances": "data(distances)", "segment-weights": "data(weights)", "segment-radii": 22, "edge-distances": "node-position" } },
      { selector: "edge.contested, edge.struck", style: { "line-style": "dashed", "line-dash-pattern": [8, 5], "line-color": warm, color: warm,
        "source-arrow-color": warm, "target-arrow-color": warm } },
      { selector: "edge.struck", style: { "line-style": "dotted" } },
      { selector: ".dim", style: { opacity: 0.25 } },
      { selector: ".gone", style: { display: "none" } },
      { selector: "node.found", style: { "border-color": accent, "border-width": 4 } },
      { selector: "node.chosen", style: { "border-color": accent, "border-width": 4 } },
      { selector: "edge.chosen", style: { "line-color": accent, "source-arrow-color": accent, "target-arrow-color": accent, color: ink, "z-index": 9 } }
    ];
  }

  const stage = $("graph");
  const cy = cytoscape({ container: stage, elements: elements, layout: { name: "preset" }, style: style(), minZoom: 0.1, maxZoom: 5, boxSelectionEnabled: false });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { cy.style(style()); });
  let moved = false;
  function fit() {
    cy.fit(undefined, 24);
    if (cy.zoom() > 1.4) { cy.zoom(1.4); cy.center(); }
    moved = false;
  }
  fit();
  cy.on("dragpan scrollzoom pinchzoom", function () { moved = true; });
  cy.on("resize", function () { if (!moved) { fit(); } });

  // Lists: the same as the drawing, for the keyboard and for readers of text.
  const rows = data.edges.map(function (edge, index) {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(element("span", edge.name, "name"), element("span", edge.short, "mark" + (edge.status === "adopted" ? "" : " warm")));
    button.addEventListener("click", function () { choose(cy.getElementById("e" + index), true); });
    item.append(button);
    $("links").append(item);
    return item;
  });
  data.contested.forEach(function (mark) {
    const item = element("li"), button = element("button");
    button.type = "button";
    button.append(element("span", mark.name, "name"), element("span", mark.short, "mark warm"));
    button.addEventListener("click", function () {
      choose(mark.edge === null ? cy.getElementById("n" + mark.node) : cy.getElementById("e" + mark.edge), true);
    });
    item.append(button);
    $("contested").append(item);
  });
  $("contested-card").hidden = !data.contested.length;
  if (!data.edges.length) { $("links").append(element("li", "The graph has no links.")); }

  function terms(pairs) {
    const list = element("dl");
    pairs.forEach(function (pair) { list.append(element("dt", pair[0]), element("dd", pair[1])); });
    return list;
  }
  function voters(votes) {
    const pairs = [];
    [["support", "Support"], ["oppose", "Oppose"], ["abstain", "Cannot tell"]].forEach(function (kind) {
      const who = votes.members ? votes.members[kind[0]] : [];
      pairs.push([kind[1], String(votes[kind[0]]) + (who.length ? ": " + who.join(", ") : "")]);
    });
    return pairs;
  }
  function describe(chosen) {
    const box = $("details");
    box.replaceChildren();
    if (!chosen) {
      box.append(element("p", data.hint, "note"));
      return;
    }
    if (chosen.isEdge()) {
      const edge = data.edges[chosen.data("index")];
      box.append(element("p", edge.name, "name"));
      const pairs = edge.facts.slice();
      box.append(terms(edge.votes ? pairs.concat(voters(edge.votes)) : pairs));
      edge.why.forEach(function (text) { box.append(element("p", text)); });
      return;
    }
    const name = chosen.data("name"), around = data.edges.filter(function (edge) { return edge.from === name || edge.to === name; });
    box.append(element("p", name, "name"));
    if (chosen.data("role")) { box.append(element("p", "The " + chosen.data("role") + " of the study.", "note")); }
    box.append(terms(around.map(function (edge) { return [edge.name, edge.short]; })));
    data.colliders.filter(function (mark) { return mark.node === name; }).forEach(function (mark) {
      box.append(element("p", mark.name + (mark.status === "contested" ? ", contested" : ""), mark.status === "contested" ? "warm" : ""));
      box.append(terms(voters(mark.votes)));
    });
  }
  function choose(chosen, move) {
    cy.elements().removeClass("chosen");
    rows.forEach(function (item) { item.firstChild.removeAttribute("aria-current"); });
    if (chosen) {
      chosen.addClass("chosen");
      if (chosen.isEdge()) { rows[chosen.data("index")].firstChild.setAttribute("aria-current", "true"); }
      if (move && chosen.visible() && moved) { cy.center(chosen); }
    }
    describe(chosen);
  }
  cy.on("tap", function (event) { choose(event.target === cy ? null : event.target, false); });
  describe(null);

  // Filter and search
  const least = $("least"), search = $("search");
  $("slider").hidden = !data.weighed;
  $("slider-name").textContent = "Least " + data.weightName;
  function filter() {
    const bound = Number(least.value) / 100, sought = search.value.trim().toLowerCase();
    $("least-shown").textContent = bound.toFixed(2);
    let count = 0;
    const hits = function (name) { return name.toLowerCase().includes(sought); };
    cy.nodes().forEach(function (node) {
      const hit = sought !== "" && hits(node.data("name"));
      node.toggleClass("found", hit).toggleClass("dim", sought !== "" && !hit);
    });
    data.edges.forEach(function (edge, index) {
      const kept = edge.weight === null || edge.weight >= bound;
      const hit = sought === "" || hits(edge.from) || hits(edge.to);
      cy.getElementById("e" + index).toggleClass("gone", !kept).toggleClass("dim", !hit);
      rows[index].hidden = !kept || !hit;
      count += kept ? 1 : 0;
    });
    const found = cy.nodes(".found").length;
    $("shown").textContent = count + " of " + data.edges.length + " links shown" +
      (sought === "" ? "" : "; " + found + (found === 1 ? " variable matches" : " variables match"));
    root.dataset.shown = String(count);
    root.dataset.found = String(found);
  }
  least.addEventListener("input", filter);
  search.addEventListener("input", filter);
  search.addEventListener("keydown", function (event) {
    if (event.key === "Enter") { const found = cy.nodes(".found"); if (found.length) { choose(found[0], true); } }
    if (event.key === "Escape") { search.value = ""; filter(); }
  });

  // The view
  function zoom(by) { moved = true; cy.zoom({ level: cy.zoom() * by, renderedPosition: { x: cy.width() / 2, y: cy.height() / 2 } }); }
  $("in").addEventListener("click", function () { zoom(1.25); });
  $("out").addEventListener("click", function () { zoom(0.8); });
  $("fit").addEventListener("click", fit);
  $("png").addEventListener("click", function () {
    const link = element("a"), image = cy.png({ output: "blob", full: true, scale: 2, bg: colour("card"), maxWidth: 8000, maxHeight: 8000 });
    link.href = URL.createObjectURL(image);
    link.download = data.file + ".png";
    link.click();
    root.dataset.png = String(image.size);
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 10000);
  });
  const keys = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  stage.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    const step = keys[event.key];
    if (step) { moved = true; cy.panBy({ x: step[0], y: step[1] }); }
    else if (event.key === "+" || event.key === "=") { zoom(1.25); }
    else if (event.key === "-") { zoom(0.8); }
    else if (event.key === "0") { fit(); }
    else if (event.key === "Escape") { choose(null, false); }
    else { return; }
    event.preventDefault();
  });

  // What the lines mean: drawn, so that no colour needs to be told from another.
  const NS = "http://www.w3.org/2000/svg";
  function drawn(tag, attributes) {
    const made = document.createElementNS(NS, tag);
    Object.keys(attributes).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    return made;
  }
  function end(mark, x, back, paint) {
    if (mark === ">") { return drawn("path", { d: "M" + x + " 7 l" + back * 9 + " -4 v8 z", fill: paint }); }
    if (mark === "o") { return drawn("circle", { cx: x + back * 4, cy: 7, r: 3.2, fill: "var(--card)", stroke: paint, "stroke-width": 1.5 }); }
    return drawn("g", {});
  }
  data.legend.forEach(function (key) {
    const item = element("li");
    if (key.marks) {
      const paint = key.status === "adopted" ? "var(--edge)" : "var(--warm)";
      const picture = drawn("svg", { width: 46, height: 14, "aria-hidden": "true" });
      const dash = key.status === "contested" ? "7 4" : key.status === "struck" ? "1.5 3" : "none";
      picture.append(drawn("path", { d: "M4 7 H42", stroke: paint, "stroke-width": 2, "stroke-dasharray": dash }), end(key.marks[0], 2, 1, paint), end(key.marks[1], 44, -1, paint));
      item.append(picture);
    }
    item.append(document.createTextNode(key.text));
    $("legend").append(item);
  });

  filter();
  root.dataset.ready = cy.nodes().length + " " + cy.edges().length;
})();
