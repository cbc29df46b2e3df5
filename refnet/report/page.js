"use strict";
// The page opens from file://, where browsers load neither modules nor JSON: data are classic scripts that call
// refnet.take. Names of classes and files are hostile: they become text nodes and attributes only, never markup.

const refnet = (() => {
  const got = new Map();
  const asked = new Map();
  const load = (key) => {
    if (!asked.has(key)) asked.set(key, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `data/${key}.js`;
      script.onload = () => resolve(got.get(key));
      script.onerror = () => reject(new Error(`data/${key}.js is missing: keep the page's folder together`));
      document.head.append(script);
    }));
    return asked.get(key);
  };
  const take = (key, value) => {
    got.set(key, value);
    if (key === "net") start(value);
  };
  return { load, take };
})();

let net;
const state = { method: "deconv", whole: false, sort: "number", parts: true };
let keys = {}; // what the view in sight does at a key
let shown = 0; // counts views, so that a slow one does not replace the next

// --- elements ---

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const h = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const count = (n) => n.toLocaleString("en");
const short = (n) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(n);
const sig = (x) => (x === null || x === undefined ? "–" : String(Number(x.toPrecision(3))));
const percent = (x) => `${(100 * x).toFixed(x > 0 && x < 0.1 ? 1 : 0)} %`;
const pretty = (name) => name.replace(/^n\d{8}_/, "").replaceAll("_", " ");
const label = (i) => pretty(net.classes[i] ?? String(i));
const at = (x) => `${100 * x}%`;

// --- pictures ---

/** The tile in a column and a row of a picture that has so many; sharp where its pixels are few. */
function part(src, [columns, rows], [column, row], sharp, style = {}) {
  const place = (i, n) => (n > 1 ? at(i / (n - 1)) : "0%");
  return h("span", {
    class: sharp ? "part sharp" : "part",
    style: {
      "background-image": `url("${src}")`, "background-size": `${100 * columns}% ${100 * rows}%`,
      "background-position": `${place(column, columns)} ${place(row, rows)}`, ...style,
    },
  });
}

const picture = (layer, map) => `maps/${layer.maps}/${map}.webp`;
const square = (name) => net.squares.indexOf(name);
const small = (layer) => layer.field < 32;

/** A map's nine strongest as a link: projections and patches side by side. */
function sheet(layer, map, entry) {
  const face = (name) => h("span", { class: small(layer) ? "square sharp" : "square" },
    h("img", { src: picture(layer, map), loading: "lazy", alt: "", style: { "object-position": `${at(square(name) / (net.squares.length - 1))} 0` } }));
  const dead = entry && !entry.values.length;
  const says = !entry ? "" : dead ? "dead: no image excites it" : entry.selectivity ? label(entry.favourite) : "";
  return h("a", { class: dead ? "map dead" : "map", href: `#${layer.name}/${map}`, "data-map": map, "aria-label": `${layer.name} map ${map}${says && ", " + says}` },
    h("span", { class: "pair" }, face(state.method), face("patches")),
    h("small", {}, h("b", {}, map), h("span", {}, says)));
}

function box([row0, column0, row1, column1], side = net.side) {
  return h("span", { class: "box", style: {
    top: at(row0 / side), left: at(column0 / side), height: at((row1 - row0) / side), width: at((column1 - column0) / side) } });
}

function choice(name, legend, options, value, change) {
  return h("fieldset", {}, h("legend", {}, legend), h("div", { class: "choice" }, options.map(([key, text]) =>
    h("label", {}, h("input", { type: "radio", name, value: key, checked: key === value, onchange: () => change(key) }), h("span", {}, text)))));
}
const NAMES = { deconv: "Deconvnet", guided: "Guided", gradient: "Gradient" };
const methods = (change) => choice("method", "Projected by", Object.entries(NAMES), state.method, (m) => { state.method = m; change(); });

const wide = (...children) => h("div", { class: "scroll", tabindex: 0 }, ...children);
function table(head, rows, numeric = true) {
  const cell = (tag) => (text, i) => h(tag, { class: numeric && i ? "n" : null, scope: tag === "th" ? "col" : null }, text);
  return h("table", {}, h("thead", {}, h("tr", {}, head.map(cell("th")))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td"))))));
}

// --- layers ---

const withMaps = () => net.layers.filter((layer) => layer.maps);
const seen = () => net.images > 0;

/** The block of a layer: its maps' size, their number as depth, and the share of the image that one value sees. */
function block(layer, deepest) {
  const [rows, , depth] = layer.shape;
  const front = 16 + 74 * Math.sqrt(rows / net.side), deep = 4 + 24 * Math.sqrt(depth / deepest);
  const dx = deep * 0.8, dy = deep * 0.5, w = front + dx + 2, tall = front + dy + 2;
  const points = (...list) => list.map((p) => p.join(",")).join(" ");
  const field = Math.max(3, front * Math.min(1, layer.field / net.side));
  const inset = (front - field) / 2;
  return svg("svg", { width: w, height: tall, viewBox: `0 0 ${w} ${tall}`, "aria-hidden": "true" },
    svg("polygon", { class: "over", points: points([1, dy + 1], [dx + 1, 1], [front + dx + 1, 1], [front + 1, dy + 1]) }),
    svg("polygon", { class: "flank", points: points([front + 1, dy + 1], [front + dx + 1, 1], [front + dx + 1, front + 1], [front + 1, front + dy + 1]) }),
    svg("rect", { class: "front", x: 1, y: dy + 1, width: front, height: front }),
    layer.field && svg("rect", { class: "seen", x: 1 + inset, y: dy + 1 + inset, width: field, height: field }));
}
function column(units, most) {
  const tall = 26 + 66 * Math.sqrt(units / most);
  return svg("svg", { width: 14, height: tall, viewBox: `0 0 14 ${tall}`, "aria-hidden": "true" }, svg("rect", { class: "front", width: 14, height: tall, rx: 2 }));
}

function architecture() {
  const main = net.layers.filter((layer) => layer.kind === "conv" || layer.kind === "linear");
  const deepest = Math.max(...main.map((layer) => layer.shape[2] ?? 0));
  const most = Math.max(...main.filter((layer) => layer.kind === "linear").map((layer) => layer.units), 1);
  const then = (layer) => {
    const from = net.layers.indexOf(layer) + 1;
    const next = net.layers.findIndex((each, i) => i >= from && main.includes(each));
    return net.layers.slice(from, next < 0 ? undefined : next).map((each) => (each.kind === "pool" ? `pool ${each.shape[0]}×${each.shape[1]}` : each.kind)).join(", ");
  };
  const input = { shape: [net.side, net.side, 3], field: 0 };
  const stage = (layer) => layer.kind === "conv"
    ? [h("span", { class: "drawn" }, block(layer, deepest)), h("b", {}, layer.name), h("small", {}, layer.shape.join(" × ")), h("small", {}, `sees ${layer.field} px`), h("small", {}, `${short(layer.parameters)} parameters`), h("small", { class: "then" }, then(layer))]
    : [h("span", { class: "drawn" }, column(layer.units, most)), h("b", {}, layer.name), h("small", {}, `${count(layer.units)} units`), h("small", {}, "sees all"), h("small", {}, `${short(layer.parameters)} parameters`), h("small", { class: "then" }, then(layer))];
  return h("ol", { class: "stack" },
    h("li", {}, h("span", { class: "stage" }, h("span", { class: "drawn" }, block(input, deepest)), h("b", {}, "image"), h("small", {}, input.shape.join(" × ")), h("small", {}, "\u00a0"), h("small", {}, "\u00a0"), h("small", { class: "then" }))),
    main.map((layer) => h("li", {}, layer.maps && seen() ? h("a", { href: `#${layer.name}` }, stage(layer)) : h("span", { class: "stage" }, stage(layer)))));
}

function filters() {
  if (!net.filters) return null;
  const { layer, count: n, size } = net.filters;
  return [h("h2", {}, `The filters of ${layer}`, h("small", {}, `${n} of ${size} × ${size} × 3, each with its own contrast`)),
    h("div", { class: "filters", role: "img", "aria-label": `${n} filters of ${layer}` },
      Array.from({ length: n }, (_, i) => h("span", { class: "frame", title: `filter ${i}` }, part("filters.webp", [n, 1], [i, 0], true))))];
}

const noImages = () => h("p", { class: "note" }, "No images were given, so only the weights are shown. ", h("code", {}, "tools/report.py WEIGHTS --data FOLDER --out OUT"), " adds what excites each map.");

function viewLayers() {
  const rows = seen() ? withMaps().map((layer) => [
    h("h2", {}, h("a", { href: `#${layer.name}` }, layer.name), h("small", {}, `${layer.shape[2]} maps, each value sees ${layer.field} × ${layer.field} pixels`)),
    h("ul", { class: "grid few" }, (net.featured[layer.maps] ?? []).map((map) => h("li", {}, sheet(layer, map)))),
    h("p", { class: "caption" }, h("a", { href: `#${layer.name}` }, `All ${layer.shape[2]} maps of ${layer.name}`))]) : [noImages()];
  return ["Layers",
    h("h1", { tabindex: -1 }, `What ${net.title} has learnt`),
    h("p", { class: "lead" }, `${count(net.parameters)} parameters, ${short(net.macs)} multiply-adds per image, ${net.classes.length} classes.`,
      seen() && ` ${count(net.images)} images were looked at; below, the maps of each layer that respond most to one class: their nine strongest activations projected to pixels, beside the patches that caused them.`),
    architecture(),
    h("p", { class: "caption" }, "Front: size of the maps. Depth: their number. The line: the share of the image that one value sees."),
    rows, filters(),
    h("details", {}, h("summary", {}, "Every layer as a table"), wide(table(["layer", "kind", "output", "sees", "step", "parameters"],
      net.layers.map((l) => [l.name, l.kind, l.shape.join(" × "), l.field ? `${l.field} px` : "all", l.step ?? "", l.parameters ? count(l.parameters) : ""]))))];
}

const SORTS = {
  number: ["Number", () => 0], strength: ["Strongest first", (e) => -(e.values[0] ?? -1)],
  selectivity: ["Most selective first", (e) => -e.selectivity], quiet: ["Quietest first (dead ones)", (e) => -e.quiet - !e.values.length],
};
function order(entries) {
  const value = SORTS[state.sort][1];
  return entries.map((_, i) => i).sort((a, b) => value(entries[a]) - value(entries[b]) || a - b);
}

async function viewLayer(layer, focus) {
  const entries = await refnet.load(layer.maps);
  const dead = entries.filter((entry) => !entry.values.length).length;
  const grid = h("ul", { class: "grid" });
  const found = h("p", { class: "caption", role: "status" });
  const search = h("input", { type: "search", id: "search", inputmode: "numeric", placeholder: "0 – " + (entries.length - 1), oninput: fill,
    onkeydown: (event) => { if (event.key === "Enter" && grid.querySelector("a")) location.hash = grid.querySelector("a").hash; } });
  function fill() {
    const wanted = search.value.trim();
    const numbers = order(entries).filter((map) => String(map).startsWith(wanted));
    if (numbers.includes(Number(wanted)) && wanted) numbers.sort((a, b) => (b === Number(wanted)) - (a === Number(wanted)));
    grid.replaceChildren(...numbers.map((map) => h("li", {}, sheet(layer, map, entries[map]))));
    found.textContent = wanted ? `${numbers.length} of ${entries.length} maps begin with ${wanted}` : `${entries.length} maps, ${dead} of them dead`;
  }
  const move = (step) => () => {
    const links = [...grid.querySelectorAll("a")];
    const here = links.indexOf(document.activeElement);
    const across = links.filter((link) => link.offsetTop === links[0]?.offsetTop).length;
    links[here < 0 ? 0 : Math.min(Math.max(here + step(across), 0), links.length - 1)]?.focus();
  };
  keys = { ArrowLeft: move(() => -1), ArrowRight: move(() => 1), ArrowUp: move((n) => -n), ArrowDown: move((n) => n), Escape: () => { location.hash = "#/layers"; }, "/": () => search.focus() };
  fill();
  const all = withMaps(), i = all.indexOf(layer);
  const step = (to, text) => h("a", { class: "button", href: to ? `#${to.name}` : null, "aria-disabled": !to && "true" }, text);
  const nodes = [layer.name,
    h("p", { class: "crumbs" }, h("a", { href: "#/layers" }, "Layers")),
    h("h1", { tabindex: -1 }, layer.name, h("small", {}, `${layer.shape.join(" × ")} after rectification`)),
    h("p", { class: "lead" }, `Each value sees ${layer.field} × ${layer.field} pixels, ${layer.step} apart. ${count(layer.parameters)} parameters. Left of each map its projections, right the patches that caused them.`),
    h("div", { class: "bar" },
      h("div", {}, h("label", { for: "sort" }, "Sort"), h("select", { id: "sort", onchange: (event) => { state.sort = event.target.value; fill(); } },
        Object.entries(SORTS).map(([key, [text]]) => h("option", { value: key, selected: key === state.sort }, text)))),
      h("div", {}, h("label", { for: "search" }, "Map number"), search),
      methods(fill),
      h("div", { class: "push" }, step(all[i - 1], "← " + (all[i - 1]?.name ?? "")), step(all[i + 1], (all[i + 1]?.name ?? "") + " →"))),
    found, grid, layer.name === net.filters?.layer && filters()];
  if (focus !== undefined) nodes.focus = () => grid.querySelector(`[data-map="${focus}"]`);
  return nodes;
}

async function viewMap(layer, map) {
  const [entries, images] = await Promise.all([refnet.load(layer.maps), refnet.load("images")]);
  const entry = entries[map];
  const sorted = order(entries), place = sorted.indexOf(map);
  let rank = 0;
  const squares = [h("div", { class: "nine" }), h("div", { class: "nine" })];
  const detail = h("div", {});
  const title = [h("h3", {}), h("h3", {}, "Patches")];
  const n = net.squares.length;
  function tile(name, i) {
    const [row0, column0, row1, column1] = entry.boxes[i];
    const area = state.whole ? { inset: "auto", top: at(row0 / net.side), left: at(column0 / net.side), height: at((row1 - row0) / net.side), width: at((column1 - column0) / net.side) } : {};
    return part(picture(layer, map), [3 * n, 3], [3 * square(name) + (i % 3), Math.floor(i / 3)], small(layer), area);
  }
  const whole = (i) => h("img", { class: "whole", src: `images/${entry.images[i]}.webp`, alt: "" });
  function cell(name, i) {
    const about = images[entry.images[i]];
    return h("button", { class: "cell", type: "button", "aria-pressed": String(i === rank), tabindex: name === "patches" ? -1 : null,
      "aria-label": `${name === "patches" ? "Patch" : "Projection"} ${i + 1}: ${sig(entry.values[i])}, ${label(about.label)}`, onclick: () => select(i) },
      state.whole && name === "patches" ? [whole(i), box(entry.boxes[i])] : tile(name, i));
  }
  function fill() {
    title[0].textContent = NAMES[state.method];
    [state.method, "patches"].forEach((name, k) => squares[k].replaceChildren(...entry.values.map((_, i) => cell(name, i))));
    select(rank);
  }
  function select(i) {
    rank = i;
    squares.forEach((each) => [...each.children].forEach((button, k) => button.setAttribute("aria-pressed", String(k === i))));
    const about = images[entry.images[i]], [row0, column0, row1, column1] = entry.boxes[i];
    detail.replaceChildren(
      h("div", { class: "frame" }, whole(i), box(entry.boxes[i])),
      h("dl", { "aria-live": "polite" },
        h("dt", {}, "Rank"), h("dd", {}, `${i + 1} of ${entry.values.length}`),
        h("dt", {}, "Value"), h("dd", {}, sig(entry.values[i])),
        h("dt", {}, "Class"), h("dd", {}, label(about.label)),
        h("dt", {}, "Image"), h("dd", {}, about.name),
        h("dt", {}, "Rows"), h("dd", {}, `${row0} – ${row1}`),
        h("dt", {}, "Columns"), h("dd", {}, `${column0} – ${column1}`)));
  }
  const to = (step) => sorted[place + step];
  const go = (step) => () => { if (to(step) !== undefined) location.hash = `#${layer.name}/${to(step)}`; };
  const turn = (step) => () => { if (entry.values.length) select((rank + step + entry.values.length) % entry.values.length); };
  keys = { ArrowLeft: go(-1), ArrowRight: go(1), ArrowUp: turn(-1), ArrowDown: turn(1), Escape: () => { location.hash = `#${layer.name}`; } };
  const button = (step, text) => h("a", { class: "button", href: to(step) === undefined ? null : `#${layer.name}/${to(step)}`, "aria-disabled": to(step) === undefined && "true" }, text);
  const classes = entry.means.map((mean, i) => [mean, i]).filter(([mean]) => mean !== null).sort((a, b) => b[0] - a[0]).slice(0, 12);
  const top = Math.max(...classes.map(([mean]) => mean), 1e-9);
  if (entry.values.length) fill();
  return [`${layer.name}/${map}`,
    h("p", { class: "crumbs" }, h("a", { href: "#/layers" }, "Layers"), " / ", h("a", { href: `#${layer.name}` }, layer.name)),
    h("h1", { tabindex: -1 }, `${layer.name}, map ${map}`),
    h("p", { class: "lead" }, entry.values.length
      ? `Strongest value ${sig(entry.values[0])}. Most excited by ${label(entry.favourite)} (selectivity ${entry.selectivity.toFixed(2)}); ${percent(entry.quiet)} of the images leave it quiet.`
      : "Dead: none of the images excites it."),
    h("div", { class: "bar" }, methods(() => entry.values.length && fill()),
      choice("whole", "Shown", [["patch", "Patch"], ["image", "Whole image"]], state.whole ? "image" : "patch", (v) => { state.whole = v === "image"; if (entry.values.length) fill(); }),
      h("div", { class: "push" }, button(-1, "← Previous"), button(1, "Next →"))),
    entry.values.length > 0 && h("div", { class: "open" }, h("figure", {}, title[0], squares[0]), h("figure", {}, title[1], squares[1]), h("div", {}, h("h3", { class: "where" }, "In its image"), detail)),
    classes.length > 1 && [h("h2", {}, "By class", h("small", {}, "mean over the images of each class of the map's largest value")), bars(classes.map(([mean, i]) => [label(i), mean / top, sig(mean)]))]];
}
const bars = (rows) => h("div", { class: "bars" }, rows.map(([name, share, text]) => [h("span", { title: name }, name), h("i", { style: { width: at(share) } }), h("em", {}, text)]));

// --- image ---

// Viridis at nine places, and Okabe and Ito's colours: both are told apart by the colour-blind.
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#bbbbbb"];
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
function ramp(x) {
  const place = Math.min(Math.max(x, 0), 1) * (VIRIDIS.length - 1), i = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const [from, to] = [rgb(VIRIDIS[i]), rgb(VIRIDIS[i + 1])];
  return from.map((each, k) => each + (to[k] - each) * (place - i));
}
function canvas(values, colour) {
  const element = h("canvas", { width: values[0].length, height: values.length, "aria-hidden": "true" });
  const context = element.getContext("2d"), data = context.createImageData(element.width, element.height);
  values.flat().forEach((value, i) => data.data.set([...colour(value), 255], 4 * i));
  context.putImageData(data, 0, 0);
  return element;
}
function heat(values, low, high, format) {
  return [canvas(values, (v) => ramp((v - low) / (high - low || 1))), [
    h("div", { class: "ramp", style: { background: `linear-gradient(90deg, ${VIRIDIS.join(", ")})` } }),
    h("div", { class: "ends" }, h("span", {}, format(low)), h("span", {}, format(high)))]];
}

async function viewImage(number) {
  if (!net.samples.length) return ["Image", h("h1", { tabindex: -1 }, "Image"),
    seen() ? h("p", { class: "note" }, "This network ends with maps and names no class, so no square is slid over images.") : noImages()];
  const i = Math.min(number || 0, net.samples.length - 1), sample = net.samples[i];
  const data = await refnet.load(`sample-${i}`);
  const R = data.right.length, C = data.right[0].length;
  const guess = sample.p.indexOf(Math.max(...sample.p));
  let place = null;

  const readout = h("p", { class: "readout", role: "status" });
  const bare = `Bare image: ${label(sample.label)} ${percent(sample.p[sample.label])}, most probable ${label(guess)} ${percent(sample.p[guess])}, activity ${sig(data.bare)}.`;
  const hiders = [];
  const photo = () => h("img", { class: "whole", src: `samples/${i}/image.webp`, alt: "" });
  const last = withMaps().at(-1), mine = data.shown[last.maps];
  const columnOf = mine.maps.indexOf(data.map);
  const strip = (layer, k, row, area) => part(`samples/${i}/${layer.maps}.webp`, [data.shown[layer.maps].maps.length, 2], [k, row], small(layer), area);

  function show(next) {
    place = next && [Math.min(Math.max(next[0], 0), R - 1), Math.min(Math.max(next[1], 0), C - 1)];
    hiders.forEach((each) => { each.hidden = !place; });
    if (!place) { readout.textContent = `${bare} Move over a picture, or use the arrow keys on it, to put the square there.`; return; }
    const [r, c] = place, top = r * data.step, left = c * data.step;
    hiders.forEach((each) => { for (const [key, value] of [["top", top], ["left", left], ["width", data.square], ["height", data.square]]) each.style.setProperty(key, at(value / net.side)); });
    const hidden = Object.entries(data.parts ?? {}).filter(([, [y, x]]) => y >= top && y < top + data.square && x >= left && x < left + data.square).map(([name]) => name);
    readout.textContent = `Square over rows ${top} – ${top + data.square}, columns ${left} – ${left + data.square}${hidden.length ? ` (${hidden.join(", ")})` : ""}: `
      + `${label(sample.label)} ${percent(data.right[r][c])}, most probable ${label(data.labels[r][c])} ${percent(data.best[r][c])}, activity ${sig(data.activity[r][c])}. ${bare}`;
  }
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  function frame(name, solid, ...content) {
    const hider = h("span", { class: solid ? "hider solid" : "hider", hidden: true });
    hiders.push(hider);
    return h("div", { class: "frame", tabindex: 0, role: "img", "aria-label": `${name}. Arrow keys move the square.`,
      onpointermove: (event) => { const b = event.currentTarget.getBoundingClientRect(); show([Math.floor((event.clientY - b.top) / b.height * R), Math.floor((event.clientX - b.left) / b.width * C)]); },
      onpointerleave: () => show(null),
      onkeydown: (event) => { const step = steps[event.key]; if (!step) return; event.preventDefault(); event.stopPropagation(); const from = place ?? [Math.floor(R / 2), Math.floor(C / 2)]; show([from[0] + step[0], from[1] + step[1]]); },
    }, ...content, hider);
  }
  const marks = data.parts ? [
    ...(data.object ? [box(data.object)] : []),
    ...Object.entries(data.parts).filter(([, [y, x]]) => y >= 0 && x >= 0 && y < net.side && x < net.side).map(([name, [y, x]]) =>
      h("span", { class: x > net.side * 0.6 ? "mark left" : "mark", "data-name": name, style: { top: at(y / net.side), left: at(x / net.side) } }))] : [];
  marks.forEach((mark) => { mark.hidden = !state.parts; });

  const activity = data.activity.flat(), [calm, lively] = [Math.min(...activity), Math.max(...activity)];
  const share = new Map();
  data.labels.flat().forEach((each) => share.set(each, (share.get(each) ?? 0) + 1));
  const named = [...share].sort((a, b) => b[1] - a[1]).map(([each]) => each);
  const colour = (each) => COLOURS[Math.min(named.indexOf(each), COLOURS.length - 1)];
  const spot = (each) => { // the place of a label that lies nearest to the middle of all of its places
    const all = data.labels.flatMap((row, r) => row.flatMap((l, c) => (l === each ? [[r, c]] : [])));
    const [y, x] = [0, 1].map((k) => all.reduce((sum, p) => sum + p[k], 0) / all.length);
    return all.sort((a, b) => Math.hypot(a[0] - y, a[1] - x) - Math.hypot(b[0] - y, b[1] - x))[0];
  };
  const numbers = svg("svg", { class: "whole", viewBox: `0 0 ${C} ${R}`, preserveAspectRatio: "none", "aria-hidden": "true" }, named.slice(0, 8).map((each, k) => {
    const [r, c] = spot(each);
    return svg("text", { x: c + 0.5, y: r + 0.5, "font-size": R / 11, "font-weight": 700, "text-anchor": "middle", "dominant-baseline": "central" }, k + 1);
  }));
  const [activityMap, activityScale] = heat(data.activity, calm, lively, sig);
  const [rightMap, rightScale] = heat(data.right, 0, Math.max(...data.right.flat()), percent);
  const panel = (title, solid, name, content, below) => h("figure", {}, h("h3", {}, title), frame(name, solid, ...content), below);
  const projected = h("span", {});
  if (columnOf >= 0) {
    const [row0, column0, row1, column1] = mine.boxes[columnOf];
    projected.append(strip(last, columnOf, 1, { inset: "auto", top: at(row0 / net.side), left: at(column0 / net.side), height: at((row1 - row0) / net.side), width: at((column1 - column0) / net.side) }));
  }
  const big = h("span", { class: "box", hidden: true });
  const panels = h("div", { class: "panels" },
    panel("The image", true, `The image, ${label(sample.label)}`, [photo(), ...marks, big], h("figcaption", {}, sample.name)),
    panel(`Activity of ${last.name} map ${data.map}`, false, "Activity of the strongest map by place of the square", [activityMap], activityScale),
    panel("Its projection", false, "Projection of the strongest map", [projected], h("figcaption", {}, h("a", { href: `#${last.name}/${data.map}` }, "its top images"))),
    panel(`Probability of ${label(sample.label)}`, false, "Probability of the true class by place of the square", [rightMap], rightScale),
    panel("Most probable label", false, "Most probable label by place of the square", [canvas(data.labels, (each) => rgb(colour(each))), numbers],
      h("ol", { class: "key" }, named.slice(0, 8).map((each, k) => h("li", {}, h("i", { style: { background: colour(each) } }, k + 1), h("span", { title: label(each) }, `${label(each)} ${percent(share.get(each) / (R * C))}`))))));

  const here = withMaps().map((layer) => {
    const each = data.shown[layer.maps];
    return h("div", { class: "here" }, h("div", {}, h("h3", {}, layer.name), h("span", { class: "caption" }, `${layer.field} px`)), each.maps.map((map, k) => {
      const hint = (on) => () => { big.hidden = !on; const [row0, column0, row1, column1] = each.boxes[k]; for (const [key, value] of [["top", row0], ["left", column0], ["height", row1 - row0], ["width", column1 - column0]]) big.style.setProperty(key, at(value / net.side)); };
      return h("a", { class: "spot", href: `#${layer.name}/${map}`, "aria-label": `${layer.name} map ${map}, value ${sig(each.values[k])}`, onpointerenter: hint(true), onpointerleave: hint(false), onfocus: hint(true), onblur: hint(false) },
        h("span", { class: "pair" }, h("span", { class: "frame" }, strip(layer, k, 1)), h("span", { class: "frame" }, strip(layer, k, 0))),
        h("small", {}, `${map} · ${sig(each.values[k])}`));
    }));
  });
  const go = (step) => () => { const to = i + step; if (to >= 0 && to < net.samples.length) location.hash = `#/image/${to}`; };
  keys = { ArrowLeft: go(-1), ArrowRight: go(1), Escape: () => { location.hash = "#/layers"; } };
  show(null);
  const probable = sample.p.map((p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  return ["Image",
    h("h1", { tabindex: -1 }, label(sample.label), h("small", {}, guess === sample.label ? "recognised" : `taken for ${label(guess)}`)),
    h("ul", { class: "thumbs", "aria-label": "Images" }, net.samples.map((each, k) => h("li", {}, h("a", { href: `#/image/${k}`, "aria-current": k === i && "true", "aria-label": `Image ${k + 1}: ${label(each.label)}` }, h("img", { src: `samples/${k}/image.webp`, alt: "" }))))),
    h("h2", { style: { "margin-top": "0" } }, "Behind a square", h("small", {}, `${data.square} px wide, every ${data.step} px, as in Figure 7`)),
    marks.length > 0 && h("label", { class: "caption" }, h("input", { type: "checkbox", style: { "min-height": 0 }, checked: state.parts, onchange: (event) => { state.parts = event.target.checked; marks.forEach((mark) => { mark.hidden = !state.parts; }); } }), " true outline and parts"),
    panels, readout,
    h("h2", {}, "What it says"), bars(probable.map(([p, k]) => [label(k), p, percent(p)])),
    h("h2", {}, "Strongest maps here", h("small", {}, "projection and patch; map number and value")), here];
}

// --- training ---

function ticks(low, high) {
  const rough = (high - low || 1) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((each) => each >= 0.8 * rough);
  return Array.from({ length: 12 }, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step).filter((v) => v <= high + step * 1e-6);
}
const tick = (v) => String(Number(v.toPrecision(6)));

function chart(title, series, format = sig) {
  const n = Math.max(...series.map(([, values]) => values.length));
  const all = series.flatMap(([, values]) => values).filter((v) => v !== null);
  if (!all.length) return null;
  const high = Math.max(...all) || 1, [W, H, left, right, top, bottom] = [560, 280, 46, 92, 12, 30];
  const x = (epoch) => left + (n > 1 ? (epoch - 1) / (n - 1) : 0.5) * (W - left - right), y = (v) => H - bottom - (v / high) * (H - top - bottom);
  const line = (values) => values.reduce((path, v, i) => (v === null ? path : `${path}${path && values[i - 1] !== null ? "L" : "M"}${x(i + 1).toFixed(1)} ${y(v).toFixed(1)}`), "");
  const ends = series.map(([name, values], k) => ({ name, k, y: y(values.at(-1) ?? 0) })).sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => { if (i && end.y < ends[i - 1].y + 15) end.y = ends[i - 1].y + 15; });
  const cursor = svg("line", { class: "cursor", y1: top, y2: H - bottom, visibility: "hidden" });
  const says = h("output", {}, `${n} epochs; last: ${series.map(([name, values]) => `${name} ${format(values.at(-1))}`).join(", ")}`);
  const still = says.textContent;
  const epochs = [...new Set(ticks(1, n).map(Math.round).filter((e) => e >= 1).concat(1, n))].sort((a, b) => a - b).filter((e, i, l) => e === n || e === 1 || (l.at(-1) - e) / n > 0.06);
  const drawing = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}. ${still}` },
    ticks(0, high).map((v) => [svg("line", { class: "rule", x1: left, x2: W - right, y1: y(v), y2: y(v) }), svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, format === percent ? percent(v) : tick(v))]),
    epochs.map((e) => svg("text", { x: x(e), y: H - 8, "text-anchor": "middle" }, e)),
    svg("line", { class: "axis", x1: left, x2: W - right, y1: H - bottom, y2: H - bottom }),
    series.map(([, values], k) => (values.length > 1 ? svg("path", { class: `s${k}`, d: line(values) }) : svg("circle", { class: `s${k}`, cx: x(1), cy: y(values[0]), r: 4 }))),
    ends.map((end) => svg("text", { class: `s${end.k}`, x: W - right + 8, y: end.y + 4 }, end.name)), cursor);
  drawing.addEventListener("pointermove", (event) => {
    const b = drawing.getBoundingClientRect(), place = ((event.clientX - b.left) / b.width * W - left) / (W - left - right);
    const epoch = Math.min(Math.max(Math.round(1 + place * (n - 1)), 1), n);
    cursor.setAttribute("x1", x(epoch)); cursor.setAttribute("x2", x(epoch)); cursor.setAttribute("visibility", "visible");
    says.textContent = `Epoch ${epoch}: ${series.map(([name, values]) => `${name} ${format(values[epoch - 1])}`).join(", ")}`;
  });
  drawing.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); says.textContent = still; });
  return h("figure", { class: "chart" }, h("h3", {}, title), drawing, says);
}

function spread() {
  const layers = Object.entries(net.rms);
  if (!layers.length) return null;
  const high = Math.max(net.clip ?? 0, ...layers.flatMap(([, values]) => values)) * 1.06, [W, left, row] = [560, 60, 30], H = layers.length * row + 34;
  const x = (v) => left + (v / high) * (W - left - 20);
  return h("figure", { class: "chart" }, h("h3", {}, "RMS of every filter"),
    svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": layers.map(([name, values]) => `${name}: from ${sig(Math.min(...values))} to ${sig(Math.max(...values))}`).join("; ") },
      ticks(0, high).map((v) => [svg("line", { class: "rule", x1: x(v), x2: x(v), y1: 4, y2: H - 28 }), svg("text", { x: x(v), y: H - 10, "text-anchor": "middle" }, tick(v))]),
      net.clip && svg("line", { class: "cursor", x1: x(net.clip), x2: x(net.clip), y1: 0, y2: H - 28 }),
      layers.map(([name, values], k) => [svg("text", { x: left - 10, y: k * row + 22, "text-anchor": "end" }, name), values.map((v) => svg("circle", { cx: x(v), cy: k * row + 18, r: 4 }))])),
    h("figcaption", {}, `One dot for each filter. ${net.clip ? `Dashed: filters beyond ${net.clip} were scaled back to it after every step (section 3).` : ""}`));
}

async function evolution() {
  if (!net.epochs.length) return h("p", { class: "note" }, "No epochs were kept. ", h("code", {}, "tools/train.py ... --keep 1,2,5,10,20,40"), " writes RUN.epochNNN.h5 beside the weights; made again with images, this page then shows how the features of each layer came about.");
  const facts = await refnet.load("evolution"), layers = withMaps().filter((layer) => facts.some((each) => each.layer === layer.maps));
  if (!layers.length) return h("p", { class: "note" }, "In the last kept epoch all maps are dead.");
  let layer = layers.at(-1);
  const sheetOf = h("div", { class: "epochs" }), says = h("output", { for: "epoch" });
  const slider = h("input", { type: "range", id: "epoch", min: 0, max: net.epochs.length - 1, value: net.epochs.length - 1, oninput: fill });
  const find = (k) => facts.find((each) => each.layer === layer.maps && each.epoch === net.epochs[k]);
  function fill() {
    const k = Number(slider.value), each = find(k), before = k ? find(k - 1) : null, n = each.maps.length;
    says.textContent = `epoch ${net.epochs[k]}`;
    slider.setAttribute("aria-valuetext", says.textContent);
    sheetOf.replaceChildren(...each.maps.map((map, i) => {
      const moved = before && before.images[i] !== each.images[i];
      return h("a", { class: moved ? "frame moved" : "frame", href: `#${layer.name}/${map}`, title: `map ${map}: ${sig(each.values[i])}, ${each.images[i]}`, "aria-label": `map ${map}${moved ? ", strongest in a new image" : ""}` },
        part(`evolution/${layer.maps}-${String(each.epoch).padStart(3, "0")}.webp`, [6, Math.ceil(n / 6)].map((v, a) => (a ? v : Math.min(6, Math.max(n, 6)))), [i % 6, Math.floor(i / 6)], small(layer)));
    }));
  }
  fill();
  return [h("div", { class: "bar" }, choice("layer", "Layer", layers.map((each) => [each.name, each.name]), layer.name, (name) => { layer = layers.find((each) => each.name === name); fill(); })),
    h("div", { class: "slide" }, h("label", { for: "epoch" }, "Kept epoch: "), says, slider), sheetOf,
    h("p", { class: "caption" }, "The strongest activation of each map at this epoch, projected. Marked “new”: it comes from another image than at the kept epoch before.")];
}

async function viewTraining() {
  const { history } = net, error = (name) => (history[name] ? history[name].map((v) => (v === null ? null : 1 - v)) : null);
  const given = (...pairs) => pairs.filter(([, values]) => values && values.length);
  const plots = [
    ["Loss (nats)", given(["training", history.train_loss], ["validation", history.val_loss])],
    ["Error", given(["training", error("train_top1")], ["validation", error("val_top1")], ["val., top 5", error("val_top5")]), percent],
    ["Learning rate", given(["rate", history.rate])], ["Filters clipped in a step", given(["clipped", history.clipped])],
  ].filter(([, series]) => series.length).map((each) => chart(...each));
  keys = { Escape: () => { location.hash = "#/layers"; } };
  const names = Object.keys(history), n = Math.max(0, ...names.map((name) => history[name].length));
  return ["Training", h("h1", { tabindex: -1 }, "Training"),
    h("p", { class: "lead" }, plots.length ? `${n} epochs.` : "The weights carry no history of their training."),
    h("div", { class: "charts" }, plots, spread()),
    h("h2", {}, "How features came about", h("small", {}, "as in Figure 4")), await evolution(),
    n > 0 && h("details", {}, h("summary", {}, "The numbers of every epoch"), wide(table(["epoch", ...names], Array.from({ length: n }, (_, i) => [i + 1, ...names.map((name) => sig(history[name][i]))]))))];
}

// --- experiments and about ---

const text = (value) => (Number.isInteger(value) ? count(value) : typeof value === "number" ? String(Number(value.toPrecision(6))) : value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

const measured = ({ measured: value, plus_minus: deviation }) => (typeof value === "number" ? sig(value) : text(value)) + (typeof deviation === "number" ? ` ± ${sig(deviation)}` : "");

function viewExperiments() {
  return ["Experiments", h("h1", { tabindex: -1 }, "Experiments"),
    net.experiments.length ? net.experiments.map((each) => [h("h2", {}, each.title),
      each.numbers.length > 0 && wide(table(["", "measured", "paper"], each.numbers.map((row) => [text(row.name), measured(row), text(row.paper)]))),
      each.pictures.map((name) => h("img", { class: "plot", loading: "lazy", src: `experiments/${encodeURIComponent(name)}`, alt: `Figure ${each.title}` })),
      each.command && h("details", {}, h("summary", {}, "How it was made"), h("p", {}, h("code", {}, each.command)),
        wide(table(["choice", ""], Object.entries(each.choices || {}).map(([name, value]) => [name, text(value)])))),
    ])
      : h("p", { class: "note" }, "Nothing was found. ", h("code", {}, "make figures"), " makes the paper's figures and tables with each number beside the paper's, and ", h("code", {}, "tools/report.py ... --experiments FOLDER"), " shows them here.")];
}

function viewAbout() {
  const { facts, choices, commands } = net.about, file = facts.file ?? {};
  const list = (pairs) => h("dl", {}, pairs.map(([name, value]) => [h("dt", {}, name), h("dd", {}, text(value))]));
  return ["About", h("h1", { tabindex: -1 }, "About"),
    h("p", { class: "lead" }, "Where these weights come from, what was chosen where the paper is silent, and how to make every picture again."),
    h("h2", {}, "Weights"), list([...Object.entries(file).map(([name, value]) => [name, Array.isArray(value) ? value.join(" ") : name === "bytes" ? count(value) : value]),
      ...["parameters", "seed", "epoch", "finished", "scale", "colour_order", "input_range", "padding_rule", "lrn_alpha"].filter((name) => name in facts).map((name) => [name, facts[name]]),
      ["classes", net.classes.map(pretty).join(", ")]]),
    h("h2", {}, "Recipe of the training"), list(Object.entries(facts.recipe ?? {})),
    h("h2", {}, "Choices of this page"), list(Object.entries(choices)),
    h("h2", {}, "Commands"), commands.map(([what, command]) => [h("h3", {}, what), h("p", {}, h("code", {}, command))])];
}

// --- the way around ---

async function render() {
  const route = decodeURIComponent(location.hash.slice(1)), mine = ++shown, main = document.getElementById("main");
  if (route === "main") return main.focus();
  const [, tab, number] = /^\/(\w+)(?:\/(\d+))?$/.exec(route) ?? [];
  const [, name, map] = /^([\w-]+)(?:\/(\d+))?$/.exec(route) ?? [];
  const layer = seen() && withMaps().find((each) => each.name === name || each.maps === name);
  const before = render.route;
  render.route = route;
  keys = { Escape: () => { location.hash = "#/layers"; } };
  let view;
  try {
    if (layer && map !== undefined && Number(map) < layer.shape[2]) view = await viewMap(layer, Number(map));
    else if (layer) view = await viewLayer(layer, before?.startsWith(`${layer.name}/`) ? before.split("/")[1] : undefined);
    else if (tab === "image") view = await viewImage(Number(number ?? 0));
    else if (tab === "training") view = await viewTraining();
    else if (tab === "experiments") view = viewExperiments();
    else if (tab === "about") view = viewAbout();
    else view = viewLayers();
  } catch (error) {
    view = ["refnet", h("p", { class: "note", role: "alert" }, error.message)];
  }
  if (mine !== shown) return;
  const [title, ...nodes] = view;
  document.title = `${title} – ${net.title}`;
  main.replaceChildren(...nodes.flat(9).filter((node) => node));
  for (const link of document.querySelectorAll("nav a")) {
    const current = link.hash === `#/${tab ?? "layers"}`;
    if (current) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  main.dataset.route = route;
  const focus = view.focus?.();
  if (focus) { focus.focus(); return; }
  scrollTo(0, 0);
  if (before !== undefined) main.querySelector("h1")?.focus({ preventScroll: true });
}

function start(value) {
  net = value;
  document.getElementById("title").textContent = net.title;
  addEventListener("hashchange", render);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const typing = event.target.matches?.("input, select");
    if (typing && event.key !== "Escape") return;
    if (typing) return event.target.blur();
    const act = keys[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  render();
}
