"use strict";

// Draws the page from the JSON in #data: `dnc diagnose --json`, the kinds of loss in words, and pictures. All of it
// becomes text nodes, numbers, or attributes that hold text; none of it markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LAYERS = DATA.layers;

// Nothing is told by colour alone: each kind of loss has a mark, drawn in a square of 10, and words.
const MARKS = {
  "range cut": "M5 .4 9.8 9.2H.2Z",
  "step too large": "M1 1H9V9H1Z",
  "pairs saturated": "M5 0 10 5 5 10 0 5Z",
  weights: "M5 .5A4.5 4.5 0 1 1 5 9.5 4.5 4.5 0 1 1 5 .5Z",
  arithmetic: "M3.5 .5H6.5V3.5H9.5V6.5H6.5V9.5H3.5V6.5H.5V3.5H3.5Z",
};
const DOT = "M5 2A3 3 0 1 1 5 8 3 3 0 1 1 5 2Z";
const shapeOf = (kind) => MARKS[kind] ?? DOT;
const classOf = (kind) => (kind in MARKS ? `k-${kind.replaceAll(" ", "-")}` : "k-none");

// Elements

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "percent") node.style.width = `${value}%`;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  // What is empty stands for nothing.
  node.append(...children.flat(2).filter(Boolean));
  return node;
}
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const mark = (kind) => s("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" }, s("path", { d: shapeOf(kind) }));
const badge = (kind, quiet = false) =>
  h(
    "span",
    { class: `badge ${classOf(kind)}${quiet ? " quiet" : ""}`, title: DATA.kinds_in_words[kind] },
    mark(kind),
    kind,
  );

// Numbers

const known = (value) => typeof value === "number";
const signed = (text) => text.replaceAll("-", "−");
const fixed = (value, digits) => signed(value.toFixed(digits));
const precise = (value) => (known(value) ? signed(String(Number(value.toPrecision(3)))) : "–");
const plain = (value) => (known(value) ? fixed(value, 1) : "–");
const decibels = (value) => (known(value) ? `${fixed(value, 1)} dB` : "none");
const points = (value) => (value > 0 ? "+" : "") + fixed(value, 2);
const numbered = (count, noun, plural = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : plural}`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (text) => capital(text) + (/[.!?]$/.test(text) ? "" : ".");
/** Text in which options stand as code. */
const prose = (text) => text.split(/(--[a-z][\w-]*)/).map((part, at) => (at % 2 ? h("code", {}, part) : part));
const between = (low, high) => `${precise(low)} to ${precise(high)}`;

function share(part) {
  if (part === 0) return "0 %";
  return part < 0.0001 ? "< 0.01 %" : `${fixed(part * 100, part < 0.1 ? 2 : 1)} %`;
}
function duration(seconds) {
  if (!known(seconds)) return "–";
  return seconds < 1e-3 ? `${precise(seconds * 1e6)} µs` : `${precise(seconds * 1e3)} ms`;
}

/** The share of a range in which values were seen. */
function used({ low, high, seen_low, seen_high }) {
  return high > low ? Math.max(0, (Math.min(seen_high, high) - Math.max(seen_low, low)) / (high - low)) : 0;
}

// Layers

const INPUT = -1;
const anchorOf = (number) => `layer-${number === INPUT ? "input" : number}`;
const nameOf = ({ number, section }) => (number === INPUT ? "network's input" : `${number} ${section}`);
const indices = new Map(LAYERS.map(({ number }, index) => [anchorOf(number), index]));
/** What keeps apart what matters from what does not: dB at the heads. */
const LOUD =
  Math.max(...DATA.culprits.map((number) => LAYERS[indices.get(anchorOf(number))]?.at_heads ?? -Infinity)) - 15;
const isQuiet = ({ at_heads }) => !(known(at_heads) && at_heads >= LOUD);
const layerLink = (number, text) => h("a", { href: `#${anchorOf(number)}` }, text);

let chosen = 0;

function choose(index) {
  chosen = Math.min(Math.max(index, 0), LAYERS.length - 1);
  history.replaceState(null, "", `#${anchorOf(LAYERS[chosen].number)}`);
  showChosen();
}

function showChosen() {
  for (const row of byId("table").tBodies[0].rows) {
    const is = Number(row.dataset.index) === chosen;
    row.classList.toggle("chosen", is);
    row.querySelector("button").setAttribute("aria-pressed", is);
  }
  showDetail(LAYERS[chosen]);
  drawDepth();
}

/** Whether the chosen layer is shown beside the table, and stays in view. */
const isBeside = () => getComputedStyle(byId("detail")).position === "sticky";
const reveal = () => byId(isBeside() ? "layers" : "detail").scrollIntoView({ block: "start" });

/** Chooses the layer that the address names. */
function follow() {
  const index = indices.get(location.hash.slice(1));
  if (index === undefined) return false;
  choose(index);
  reveal();
  return true;
}

/** Shows lines beside the pointer; none hide what is shown. */
function tip(event, lines = []) {
  const node = byId("tip");
  node.hidden = !lines.length;
  node.replaceChildren(...lines.map((line, at) => h(at ? "div" : "strong", {}, line)));
  const { width, height } = node.getBoundingClientRect();
  const x = event.clientX + 14 + width > innerWidth - 4 ? event.clientX - 14 - width : event.clientX + 14;
  const y = event.clientY - 14 - height < 4 ? event.clientY + 18 : event.clientY - 14 - height;
  node.style.transform = `translate(${Math.max(4, x)}px, ${y}px)`;
}

function inWords(layer) {
  const lines = [capital(nameOf(layer))];
  if (layer.measured) {
    lines.push(`by itself ${decibels(layer.own)}`, `accumulated ${decibels(layer.accumulated)}`);
  } else lines.push("its noise was not measured");
  if (layer.kind) lines.push(layer.kind);
  if (known(layer.seconds)) lines.push(duration(layer.seconds));
  return lines;
}

// The head of the page, and what is said in short

function drawHead() {
  const side = ({ title, target, precision }) => `${title} (${target}, ${precision})`;
  byId("sides").textContent = `${side(DATA.engine)} against ${side(DATA.against)}, on ${DATA.source}`;
  const tiles = [];
  const tile = (term, value, beside = "", verdict = "") =>
    tiles.push(
      h("div", { class: verdict }, h("dt", {}, term), h("dd", {}, value, beside && h("small", {}, ` ${beside}`))),
    );
  const { metric } = DATA;
  if (metric) {
    const gain = (metric.engine - metric.against) * 100;
    const whole = `${fixed(metric.engine * 100, 2)} %`;
    tile(`${metric.name}, ${DATA.against.title} ${fixed(metric.against * 100, 2)} %`, whole);
    tile("points", points(gain), "", gain < -0.005 ? "worse" : gain > 0.005 ? "better" : "");
  }
  const noises = DATA.heads.map(({ noise }) => noise).filter(known);
  if (noises.length)
    tile(DATA.heads.length > 1 ? "noise at the worst head" : "noise at the head", decibels(Math.max(...noises)));
  if (DATA.boxes) tile(`of ${numbered(DATA.boxes, "result")}`, `${DATA.gone} / ${DATA.come}`, "gone / new");
  byId("tiles").append(...tiles);
  byId("sentences").append(...DATA.summary.map((text) => h("p", {}, prose(text))));

  byId("heads").append(
    ...DATA.heads.map(({ name, where, error, noise, largest_error }) =>
      h(
        "tr",
        {},
        h("th", { scope: "row", class: "words", title: where }, name),
        ...[share(error), plain(noise), precise(largest_error)].map((text) => h("td", {}, text)),
      ),
    ),
  );
  byId("heads-table").hidden = !DATA.heads.length;

  const culprits = DATA.culprits.slice(0, 6).map((number) => LAYERS[indices.get(anchorOf(number))]);
  byId("culprits").append(
    ...culprits.map((layer) =>
      h(
        "li",
        { class: "card" },
        h("div", { class: "badges" }, layerLink(layer.number, capital(nameOf(layer))), layer.kind && badge(layer.kind)),
        h(
          "p",
          { class: "soft" },
          [`adds ${decibels(layer.own)}`, known(layer.at_heads) && `${decibels(layer.at_heads)} at the heads`]
            .filter(Boolean)
            .join(", "),
        ),
        layer.advice && h("p", {}, prose(sentence(layer.advice))),
      ),
    ),
  );
}

function drawParts() {
  const links = [];
  for (const section of document.querySelectorAll("main > section:not([hidden])")) {
    links.push(h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  }
  byId("parts").append(...links);
  const follow = () => {
    const end = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
    const begun = links.filter((link) => byId(link.hash.slice(1)).getBoundingClientRect().top < innerHeight * 0.4);
    const current = end ? links.at(-1) : (begun.at(-1) ?? links[0]);
    for (const link of links) link.toggleAttribute("aria-current", link === current);
    byId("parts").scrollLeft = current.offsetLeft - 24;
  };
  addEventListener("scroll", follow, { passive: true });
  follow();
}

// Plots

/** About so many round numbers from low to high. */
function ticks(low, high, number) {
  const raw = (high - low) / number || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

/** Of a plot, in pixels: a window may be narrower for a moment. */
const NARROWEST = 160;

const path = (places) => places.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function drawDepth() {
  const host = byId("depth-plot");
  const width = Math.max(host.clientWidth, NARROWEST);
  const timed = LAYERS.some(({ seconds }) => known(seconds));
  const [left, right, top, height] = [38, 8, 10, width < 600 ? 200 : 270];
  const strip = timed ? 46 : 0;
  const floor = top + height;
  const bottom = floor + (timed ? strip + 16 : 0);
  const levels = LAYERS.flatMap(({ own, accumulated }) => [own, accumulated]).filter(known);
  const most = Math.max(0, ...levels);
  const least = Math.min(-20, ...levels) - 3;
  const step = (width - left - right) / LAYERS.length;
  const x = (index) => left + (index + 0.5) * step;
  const y = (level) => top + ((most - level) / (most - least)) * height;

  const svg = s("svg", {
    viewBox: `0 0 ${width} ${bottom + 22}`,
    height: bottom + 22,
    tabindex: 0,
    role: "slider",
    "aria-label": "Layer, in the plot of noise over depth",
    "aria-valuemin": 0,
    "aria-valuemax": LAYERS.length - 1,
    "aria-valuenow": chosen,
    "aria-valuetext": inWords(LAYERS[chosen]).join(", "),
  });
  const guide = (index, name) => s("line", { class: name, x1: x(index), x2: x(index), y1: top, y2: bottom });
  const pointed = guide(0, "pointed");
  pointed.setAttribute("visibility", "hidden");
  svg.append(guide(chosen, "chosen"), pointed);
  for (const tick of ticks(least, most, 5)) {
    svg.append(
      s("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      s("text", { x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, `${signed(String(tick))}${tick ? "" : " dB"}`),
    );
  }
  const every = ticks(0, LAYERS.length, (width - left - right) / 42)[1] ?? 1;
  LAYERS.forEach(({ number }, index) => {
    if (number !== INPUT && number % Math.max(1, every) === 0) {
      svg.append(s("text", { x: x(index), y: bottom + 16, "text-anchor": "middle" }, String(number)));
    }
  });

  const line = LAYERS.map(({ accumulated }, index) => [index, accumulated]).filter(([, level]) => known(level));
  if (line.length) {
    const places = line.map(([index, level]) => [x(index), y(level)]);
    const area = `${path(places)}L${places.at(-1)[0]} ${floor}L${places[0][0]} ${floor}Z`;
    svg.append(s("path", { class: "under", d: area }), s("path", { class: "sum", d: path(places) }));
  }
  const longest = Math.max(...LAYERS.map(({ seconds }) => seconds ?? 0));
  const size = Math.max(6, Math.min(10, step * 0.9));
  LAYERS.forEach((layer, index) => {
    const { own, kind, seconds } = layer;
    const quiet = isQuiet(layer) ? " quiet" : "";
    if (known(own)) {
      const place = `translate(${x(index) - size / 2} ${y(own) - size / 2}) scale(${size / 10})`;
      svg.append(
        s("line", { class: `stem ${classOf(kind)}${quiet}`, x1: x(index), x2: x(index), y1: y(own), y2: floor }),
        s("path", { class: `mark ${classOf(kind)}${quiet}`, d: shapeOf(kind), transform: place }),
      );
    }
    if (timed && known(seconds)) {
      const tall = Math.max(1, (seconds / longest) * strip);
      const place = { x: x(index) - step * 0.36, width: step * 0.72, y: bottom - tall, height: tall };
      svg.append(s("rect", { class: `time${index === chosen ? " at" : ""}`, ...place }));
    }
  });
  if (timed) svg.append(s("text", { x: left - 7, y: bottom - 2, "text-anchor": "end" }, "time"));

  const under = ({ clientX }) => {
    const index = Math.floor((clientX - svg.getBoundingClientRect().left - left) / step);
    return Math.min(Math.max(index, 0), LAYERS.length - 1);
  };
  svg.addEventListener("pointermove", (event) => {
    const index = under(event);
    for (const end of ["x1", "x2"]) pointed.setAttribute(end, x(index));
    pointed.setAttribute("visibility", "visible");
    tip(event, inWords(LAYERS[index]));
  });
  svg.addEventListener("pointerleave", (event) => {
    pointed.setAttribute("visibility", "hidden");
    tip(event);
  });
  svg.addEventListener("click", (event) => choose(under(event)));
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 };
    const ends = { Home: 0, End: LAYERS.length - 1 };
    const to = ends[event.key] ?? chosen + moves[event.key];
    if (Number.isNaN(to)) return;
    event.preventDefault();
    choose(to);
    host.querySelector("svg").focus();
  });
  host.replaceChildren(svg);
}

function drawDepthLegend() {
  const kinds = Object.keys(DATA.kinds_in_words).filter((kind) => LAYERS.some((layer) => layer.kind === kind));
  const stroke = s(
    "svg",
    { viewBox: "0 0 14 8", class: "stroke", "aria-hidden": "true" },
    s("path", { class: "sum", d: "M0 4H14" }),
  );
  byId("depth-legend").append(
    h("li", {}, stroke, "accumulated"),
    h("li", {}, "by itself, by the kind of loss:"),
    ...kinds.map((kind) => h("li", {}, badge(kind))),
    LAYERS.some(({ kind, own }) => !kind && known(own)) ? h("li", { class: "k-none" }, mark(""), "none of them") : "",
    LAYERS.some((layer) => known(layer.own) && isQuiet(layer))
      ? h("li", {}, "faint: little of it reaches the heads")
      : "",
  );
}

/** A histogram in some 100 bars, with the range of 8-bit numbers over it. */
function drawHistogram(host, { low, high, counts }, range) {
  const width = Math.max(host.clientWidth, NARROWEST);
  const [top, height, side] = [18, 120, 4];
  let from = low;
  let to = high;
  if (range) [from, to] = [Math.min(low, range.low), Math.max(high, range.high)];
  const x = (value) => side + ((value - from) / (to - from || 1)) * (width - 2 * side);
  const svg = s("svg", { viewBox: `0 0 ${width} ${top + height + 20}`, height: top + height + 20, role: "img" });
  svg.setAttribute(
    "aria-label",
    `Histogram of values from ${between(low, high)}${range ? `, with the range ${between(range.low, range.high)}` : ""}`,
  );
  if (range)
    svg.append(s("rect", { class: "given", x: x(range.low), width: x(range.high) - x(range.low), y: top, height }));
  const bin = (high - low) / counts.length;
  const bars = Math.min(counts.length, Math.floor(width / 3));
  const most = Math.log1p(Math.max(...counts));
  for (let bar = 0; bar < bars; bar += 1) {
    const first = Math.floor((bar * counts.length) / bars);
    const end = Math.floor(((bar + 1) * counts.length) / bars);
    const count = Math.max(...counts.slice(first, end));
    if (!count) continue;
    const middle = low + ((first + end) / 2) * bin;
    const out = range && (middle < range.low || middle > range.high);
    const tall = Math.max(1.5, (Math.log1p(count) / most) * height);
    const at = x(low + first * bin);
    const place = { x: at, width: Math.max(0.5, x(low + end * bin) - at - 0.5), y: top + height - tall, height: tall };
    svg.append(s("rect", { class: out ? "bar-out" : "bar-in", ...place }));
  }
  svg.append(s("line", { class: "grid", x1: side, x2: width - side, y1: top + height, y2: top + height }));
  for (const tick of ticks(from, to, 4)) {
    svg.append(s("text", { x: x(tick), y: top + height + 15, "text-anchor": "middle" }, precise(tick)));
  }
  if (range) {
    for (const value of [range.low, range.high]) {
      svg.append(s("line", { class: "edge", x1: x(value), x2: x(value), y1: top - 4, y2: top + height }));
    }
    for (const value of [range.seen_low, range.seen_high]) {
      svg.append(s("line", { class: "seen", x1: x(value), x2: x(value), y1: top - 4, y2: top + height }));
    }
    svg.append(s("text", { x: (x(range.low) + x(range.high)) / 2, y: top - 7, "text-anchor": "middle" }, "8 bits"));
  }
  host.replaceChildren(svg);
}

// The chosen layer

function showDetail(layer) {
  const { range, histogram } = layer;
  byId("detail-title").textContent = capital(nameOf(layer));
  byId("previous").disabled = chosen === 0;
  byId("next").disabled = chosen === LAYERS.length - 1;
  const groups = [];
  const group = (title, facts) => {
    const said = facts.filter(([, value]) => value);
    const rows = said.map(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]);
    if (said.length) groups.push(h("h4", {}, title), h("dl", { class: "facts" }, rows));
  };
  if (layer.measured) {
    group("Noise", [
      ["by itself", decibels(layer.own)],
      ["in its middle channel", known(layer.typical) && decibels(layer.typical)],
      ["brought to the heads", known(layer.at_heads) && decibels(layer.at_heads)],
      ["accumulated", decibels(layer.accumulated)],
      ["largest error", precise(layer.largest_error)],
      ["largest value", precise(layer.largest_value)],
    ]);
  }
  const kinds = Object.entries(layer.kinds).sort(([, one], [, other]) => other - one);
  if (kinds.length > 1)
    group(
      "Each loss alone",
      kinds.map(([kind, alone]) => [badge(kind), decibels(alone)]),
    );
  if (range) {
    group("Range of 8 bits", [
      ["given", between(range.low, range.high)],
      ["seen on the images", between(range.seen_low, range.seen_high)],
      ["share of it used", share(used(range))],
      ["values beyond it", share(layer.saturated)],
      ["step", precise(range.step)],
    ]);
  }
  group("Layer", [
    ["computed in", layer.precision],
    ["output", layer.shape.join(" × ")],
    ["pairs that saturate", layer.saturated_pairs && share(layer.saturated_pairs)],
    ["largest channel by the middle one", known(layer.spread) && `${precise(layer.spread)} times`],
    ["time of a run", known(layer.seconds) && duration(layer.seconds)],
  ]);

  const parts = [h("p", { class: "where" }, layer.line ? layer.where : "")];
  if (layer.kind)
    parts.push(
      h("p", { class: "badges" }, badge(layer.kind)),
      h("p", { class: "advice soft" }, sentence(DATA.kinds_in_words[layer.kind] ?? layer.kind)),
    );
  if (layer.advice) parts.push(h("p", { class: "advice" }, prose(sentence(layer.advice))));
  if (layer.reason) parts.push(h("p", { class: "advice" }, sentence(`not in 8 bits: ${layer.reason}`)));
  if (!layer.measured)
    parts.push(
      h(
        "p",
        { class: "advice" },
        "The engine has joined it with others, so that its values are nowhere, and its noise is in theirs.",
      ),
    );
  let canvas = null;
  if (histogram) {
    canvas = h("div", { class: "canvas", id: "histogram" });
    const cut = range && layer.saturated ? h("li", { class: "k-range-cut" }, swatch("bar-out"), "cut") : "";
    const legend = range
      ? h(
          "ul",
          { class: "legend" },
          h("li", {}, swatch("edge"), "range given"),
          h("li", {}, swatch("seen"), "seen"),
          cut,
        )
      : "";
    const zeros = histogram.zeros ? h("p", { class: "note" }, `${numbered(histogram.zeros, "zero")} beside these`) : "";
    parts.push(h("h4", {}, "Its values, counted on a logarithmic scale"), canvas, legend, zeros);
  }
  parts.push(...groups);
  if (layer.text)
    parts.push(
      h(
        "details",
        { class: "section", open: true },
        h("summary", {}, "Its section of the cfg"),
        h("pre", {}, h("code", {}, layer.text)),
      ),
    );
  byId("detail-body").replaceChildren(...parts);
  if (canvas) drawHistogram(canvas, histogram, range);
}

const swatch = (name) =>
  s(
    "svg",
    { viewBox: "0 0 14 8", class: "stroke", "aria-hidden": "true" },
    name === "bar-out"
      ? s("rect", { class: name, x: 4, width: 6, height: 8 })
      : s("path", { class: name, d: "M7 0V8" }),
  );
const meter = (value, low, high) =>
  h("i", { class: "meter", percent: Math.max(2, ((value - low) / (high - low || 1)) * 100) });

// The table

const text = (row) =>
  [row.number, row.section, row.where, row.precision, row.kind, row.advice, row.reason, row.text]
    .join(" ")
    .toLowerCase();
const COLUMNS = [
  { title: "Layer", value: ({ number }) => number, cell: layerCell, words: true },
  { title: "By itself, dB", value: ({ own }) => own, cell: ({ own }) => level(own, "own"), worst: true },
  {
    title: "Accumu\u00adlated, dB",
    value: (row) => row.accumulated,
    cell: (row) => level(row.accumulated, "accumulated"),
    worst: true,
    from: "medium",
  },
  {
    title: "At the heads, dB",
    value: (row) => row.at_heads,
    cell: (row) => plain(row.at_heads),
    worst: true,
    from: "wide",
  },
  {
    title: "Largest error",
    value: (row) => (row.measured ? row.largest_error : null),
    cell: (row) => (row.measured ? precise(row.largest_error) : "–"),
    worst: true,
    from: "wide",
  },
  {
    title: "Beyond range",
    value: (row) => (row.range ? row.saturated : null),
    cell: (row) => (row.range ? share(row.saturated) : "–"),
    worst: true,
    from: "wide",
  },
  {
    title: "Range used",
    value: ({ range }) => (range ? used(range) : null),
    cell: ({ range }) => (range ? share(used(range)) : "–"),
    from: "roomy",
  },
  {
    title: "Time",
    value: ({ seconds }) => seconds,
    cell: ({ seconds }) => duration(seconds),
    worst: true,
    from: "roomy",
    shown: LAYERS.some(({ seconds }) => known(seconds)),
  },
  {
    title: "Loss",
    value: ({ kind }) => kind,
    cell: (row) => (row.kind ? badge(row.kind, isQuiet(row)) : "–"),
    words: true,
  },
].filter(({ shown = true }) => shown);
const sorting = { column: 0, descending: false };
const wanted = new Set();

function layerCell(row, index) {
  const line = [row.precision, row.line && `line ${row.line}`].filter(Boolean).join(" · ");
  return h(
    "button",
    { type: "button", "aria-pressed": index === chosen },
    h("span", { class: "index" }, row.number === INPUT ? "" : String(row.number)),
    h("span", { class: "type" }, row.section),
    h("span", { class: "line" }, line),
  );
}

const extent = (name) => {
  const all = LAYERS.map((layer) => layer[name]).filter(known);
  return [Math.min(...all), Math.max(...all)];
};
const EXTENTS = { own: extent("own"), accumulated: extent("accumulated") };

function level(value, name) {
  if (!known(value)) return "–";
  return h("span", { class: `level ${name}` }, plain(value), meter(value, ...EXTENTS[name]));
}

function drawTable() {
  const find = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const { column, descending } = sorting;
  const { value } = COLUMNS[column];
  const rows = LAYERS.map((layer, index) => ({ layer, index, key: value(layer) }))
    .filter(({ layer }) => !wanted.size || wanted.has(layer.kind))
    .filter(({ layer }) => find.every((word) => text(layer).includes(word)))
    .sort((one, other) => compare(one.key, other.key, descending) || one.index - other.index);
  byId("table").tBodies[0].replaceChildren(
    ...rows.map(({ layer, index }) =>
      h(
        "tr",
        { "data-index": index, class: index === chosen ? "chosen" : "" },
        COLUMNS.map(({ cell, words, from }, at) =>
          h(
            at ? "td" : "th",
            { class: [words && "words", from].filter(Boolean).join(" "), scope: at ? null : "row" },
            cell(layer, index),
          ),
        ),
      ),
    ),
  );
  [...byId("table").tHead.rows[0].cells].forEach((cell, at) => {
    if (at === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
  byId("count").textContent =
    rows.length === LAYERS.length
      ? numbered(rows.length, "layer")
      : `${rows.length} of ${numbered(LAYERS.length, "layer")}`;
}

/** What is not known comes last, in either order. */
function compare(one, other, descending) {
  const empty = (value) => value === null || value === undefined || value === "";
  if (empty(one) || empty(other)) return empty(one) - empty(other);
  const order = known(one) ? one - other : one.localeCompare(other);
  return descending ? -order : order;
}

function prepareTable() {
  const table = byId("table");
  const sort = (at) => {
    const again = sorting.column === at;
    sorting.descending = again ? !sorting.descending : Boolean(COLUMNS[at].worst);
    sorting.column = at;
    drawTable();
  };
  table.tHead.append(
    h(
      "tr",
      {},
      COLUMNS.map(({ title, words, from }, at) =>
        h(
          "th",
          { scope: "col", class: [words && "words", from].filter(Boolean).join(" ") },
          h("button", { type: "button", onclick: () => sort(at) }, title),
        ),
      ),
    ),
  );
  table.tBodies[0].addEventListener("click", ({ target }) => {
    choose(Number(target.closest("tr").dataset.index));
    if (!isBeside()) reveal();
  });
  byId("find").addEventListener("input", drawTable);
  for (const kind of Object.keys(DATA.kinds_in_words)) {
    const number = LAYERS.filter((layer) => layer.kind === kind).length;
    if (!number) continue;
    const toggle = ({ currentTarget }) => {
      if (!wanted.delete(kind)) wanted.add(kind);
      currentTarget.setAttribute("aria-pressed", wanted.has(kind));
      drawTable();
    };
    byId("kinds").append(
      h(
        "button",
        { type: "button", class: classOf(kind), "aria-pressed": "false", onclick: toggle },
        mark(kind),
        kind,
        h("span", { class: "number" }, String(number)),
      ),
    );
  }
  byId("previous").addEventListener("click", () => choose(chosen - 1));
  byId("next").addEventListener("click", () => choose(chosen + 1));
  drawTable();
}

// What is worth float32

function drawKeep() {
  if (!DATA.keep.length) return;
  byId("keep").hidden = false;
  const most = Math.max(...DATA.keep.map((kept) => kept.points), 0.01);
  const best = DATA.keep.at(-1);
  const rows = DATA.keep.map((kept) =>
    h(
      "tr",
      { class: kept.layers.length > 1 ? "together" : "" },
      h(
        "th",
        { scope: "row", class: "words" },
        kept.layers.flatMap((number, at) => [
          at ? ", " : "",
          layerLink(number, number === INPUT ? "input" : String(number)),
        ]),
      ),
      h(
        "td",
        {},
        h(
          "span",
          { class: "gain" },
          h("span", { class: "track" }, kept.points > 0 && meter(kept.points, 0, most)),
          points(kept.points),
        ),
      ),
      h("td", { class: "words soft" }, kept.measured ? "measured" : "estimated"),
    ),
  );
  const head = ["Kept in float32", "Points won", ""].map((title, at) =>
    h(
      "th",
      { scope: "col", class: at === 1 ? "" : "words" },
      title || h("span", { class: "hidden" }, "How it is known"),
    ),
  );
  const option = `--keep ${best.layers.join(",")}`;
  const said = h("span", { class: "note", role: "status" });
  const copy = async () => {
    said.textContent = (await copied(option)) ? " copied" : " select it and copy it by hand";
  };
  byId("keep-body").append(h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
  if (best.points <= 0) return;
  byId("keep-body").append(
    h(
      "div",
      { class: "card copy" },
      h("p", {}, "Add to ", h("code", {}, "dnc compile"), ":"),
      h("pre", {}, h("code", { id: "option" }, option)),
      h("button", { type: "button", id: "copy", onclick: copy }, "Copy"),
      said,
    ),
  );
}

async function copied(words) {
  try {
    await navigator.clipboard.writeText(words);
    return true;
  } catch {
    // Not every browser lets a file use the clipboard: the old way, by a selection.
    getSelection().selectAllChildren(byId("option"));
    return document.execCommand("copy");
  }
}

// Pictures

/** What an engine is called where there is little room: its folder without the path. */
const shortOf = ({ title }) => title.split(/[\\/]/).at(-1);
const CHOICES = [
  ["both", "both"],
  ["against", shortOf(DATA.against)],
  ["engine", shortOf(DATA.engine)],
];

const PLACES = { gone: "gone", come: "new", both: "found by both" };

function drawPictures() {
  if (!DATA.changes.length) return;
  byId("pictures").hidden = false;
  const gallery = byId("gallery");
  const line = (name) =>
    s("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, s("path", { class: `swatch ${name}`, d: "M0 4H22" }));
  byId("engines").append(
    ...CHOICES.map(([name, title]) => {
      const pick = () => (gallery.className = `gallery show-${name}`);
      return h(
        "label",
        {},
        h("input", { type: "radio", name: "engines", value: name, checked: name === "both", onchange: pick }),
        h("span", {}, name === "both" ? null : line(name), h("b", {}, title)),
      );
    }),
  );
  gallery.append(...DATA.changes.map((change, index) => picture(change, DATA.pictures[index])));
}

/** The part of a box that is inside of the image, in its pixels. */
function inside(box, [width, height]) {
  const clamped = (value) => Math.min(Math.max(value, 0), 1);
  const [left, right] = [clamped(box.left), clamped(box.left + box.width)];
  const [top, bottom] = [clamped(box.top), clamped(box.top + box.height)];
  return { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
}

function picture(change, source) {
  const name = change.path.split(/[\\/]/).at(-1);
  const svg = s("svg", { viewBox: `0 0 ${change.size.join(" ")}`, "aria-hidden": "true" });
  const frame = h("div", { class: "picture" }, source && h("img", { src: source, alt: name, decoding: "async" }), svg);
  const drawn = [];
  const changed = [];
  for (const side of ["against", "engine"]) {
    for (const box of change[side]) {
      const sure = `${fixed(box.confidence * 100, 0)} %`;
      const said = [`${box.label} ${sure}`, shortOf(DATA[side]), PLACES[box.place]];
      const nodes = [];
      const light = (on) => () => {
        frame.classList.toggle("dimmed", on);
        for (const node of nodes) node.classList.toggle("lit", on);
      };
      const pointed = { onpointerenter: light(true), onpointerleave: light(false) };
      // A classifier's have no sides.
      if (box.width > 0 && box.height > 0) {
        const place = inside(box, change.size);
        const rect = s("rect", { class: `box ${side} ${box.place}`, ...place, ...pointed });
        rect.addEventListener("pointermove", (event) => tip(event, said));
        rect.addEventListener("pointerleave", (event) => tip(event));
        nodes.push(rect);
        drawn.push({ rect, area: place.width * place.height });
      }
      if (box.place === "both") continue;
      const focused = { onfocus: light(true), onblur: light(false) };
      const parts = [h("span", { class: "what" }, PLACES[box.place]), h("span", { class: "label" }, box.label), sure];
      nodes.push(h("button", { type: "button", ...pointed, ...focused }, parts));
      changed.push(h("li", { class: box.place }, nodes.at(-1)));
    }
  }
  // The smaller ones above, where the pointer finds them.
  svg.append(...drawn.sort((one, other) => other.area - one.area).map(({ rect }) => rect));
  const same = change.against.filter(({ place }) => place === "both").length;
  const summary = [same && `${same} found by both`, known(change.noise) && `${decibels(change.noise)} at the heads`];
  const figure = h("figure", { class: "card" });
  const enlarge = ({ currentTarget }) => {
    currentTarget.textContent = figure.classList.toggle("large") ? "smaller" : "larger";
  };
  figure.append(
    frame,
    h("button", { type: "button", class: "enlarge", onclick: enlarge }, "larger"),
    h(
      "figcaption",
      {},
      h("p", { class: "name" }, name),
      h("p", { class: "soft" }, summary.filter(Boolean).join(" · ")),
      source ? "" : h("p", { class: "soft" }, "The image is not on this page."),
      h("ul", { class: "changes" }, changed),
    ),
  );
  return figure;
}

// What the passes did

function drawRemarks() {
  const fold = (title, beside, items) =>
    h("details", {}, h("summary", {}, title, h("span", { class: "soft" }, beside)), h("ul", {}, items));
  const sides = [DATA.engine, DATA.against].map(({ title, options, report }) => {
    const said = [...Object.entries(options), ...Object.entries(report)];
    return (
      said.length &&
      fold(
        title,
        "options, and what its target says",
        said.map(([topic, words]) => h("li", {}, h("span", { class: "soft" }, `${topic}: `), words)),
      )
    );
  });
  const passes = DATA.passes.filter(({ applied, missed }) => applied.length || missed.length);
  byId("remarks").hidden = !passes.length && !sides.some(Boolean);
  const list = (title, remarks) => {
    const places = new Map();
    for (const { where, text } of remarks) places.set(text, [...(places.get(text) ?? []), where]);
    return [...places].map(([words, found]) =>
      h("li", {}, `${title}${words} `, h("span", { class: "soft" }, layersOf(found))),
    );
  };
  byId("remarks-body").append(
    ...passes.map(({ name, applied, missed }) => {
      const numbers = [
        applied.length && `applied ${numbered(applied.length, "time")}`,
        missed.length && `missed ${numbered(missed.length, "time")}`,
      ];
      return fold(name, numbers.filter(Boolean).join(", "), [...list("", applied), ...list("missed: ", missed)]);
    }),
    ...sides.filter(Boolean),
  );
}

/** Sections of a cfg by their numbers, which lead to them; other places by name. */
function layersOf(places) {
  const found = [...new Set(places)].flatMap((place, at) => {
    const number = /#(\d+)$/.exec(place);
    const index = number && indices.get(`layer-${number[1]}`);
    return [at ? ", " : "", known(index) ? layerLink(LAYERS[index].number, number[1]) : place];
  });
  return h("span", {}, found);
}

// All of it

drawHead();
drawDepthLegend();
drawKeep();
drawPictures();
drawRemarks();
byId("footer").append(...DATA.notes.map((note) => h("p", {}, sentence(note))), h("p", {}, DATA.made));
drawParts();
if (LAYERS.length) {
  prepareTable();
  if (!follow()) {
    chosen = indices.get(anchorOf(DATA.culprits[0])) ?? 0;
    showChosen();
  }
  addEventListener("hashchange", follow);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    showChosen();
  });
} else {
  byId("depth").hidden = byId("layers").hidden = true;
}
