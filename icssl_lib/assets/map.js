"use strict";
// Linked maps. One index i is one product everywhere; products come in a random order, so lower ones are a sample.
(() => {
const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const N = data.titles.length;

// ---- data

// Integers as page.py packs them: little endian, unsigned, each one more than its value, so that 0 is -1.
function unpack(packed) {
  const text = atob(packed.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const whole = new {1: Uint8Array, 2: Uint16Array, 4: Uint32Array}[packed.bytes](bytes.buffer);
  return Int32Array.from(whole, value => value - 1);
}

const views = data.views.map(view => ({
  name: view.name,
  xy: Float32Array.from(unpack(view.positions), value => value / 65534),
  predicted: view.predicted && {names: view.predicted.names, codes: unpack(view.predicted.codes)},
  neighbours: view.neighbours ? unpack(view.neighbours) : null,
  k: view.neighbours ? view.neighbours.k : 0,
}));
const facts = data.facts.map(fact => ({name: fact.name, names: fact.names, codes: unpack(fact.codes)}));
const label = facts.find(fact => fact.name === "Class");
const tiles = data.pictures && unpack(data.pictures.tiles);
for (const colour of data.colours) colour.codes = colour.codes.map(unpack);
if (!data.colours.length) data.colours.push({name: "Products", names: ["product"], codes: [new Int32Array(N)]});

const named = (fact, i) => fact && fact.codes[i] >= 0 ? fact.names[fact.codes[i]] : null;
const number = value => value.toLocaleString("en");
const many = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

// ---- state

const camera = {x: 0.5, y: 0.5, zoom: 1};
const state = {
  colour: data.colours[0], highlight: null, hovered: -1, pinned: -1, selected: null, chosen: [], matched: [],
  tool: "move", layout: "side", from: 0, to: views.length - 1, between: 1,
};
const panels = [];
let theme, pending = 0, rest = 0, settled = true, drawn = 0;

// ---- pictures

const sheets = new Map();

// The sheet's image once it is decoded, else null; `then` is called when it is.
function sheet(k, then) {
  let entry = sheets.get(k);
  if (!entry) {
    entry = {image: new Image(), ready: false, waiting: []};
    sheets.set(k, entry);
    entry.image.src = "data:image/webp;base64," + $("sheet" + k).textContent;
    entry.image.decode().then(() => {
      entry.ready = true;
      for (const call of entry.waiting) call();
    }, () => {});
  }
  if (!entry.ready && then && !entry.waiting.includes(then)) entry.waiting.push(then);
  return entry.ready ? entry.image : null;
}

// Draw product i's picture into a square; false while there is none (yet).
function picture(context, i, x, y, size, then) {
  if (!tiles || tiles[i] < 0) return false;
  const {side, columns} = data.pictures, per = columns * columns, tile = tiles[i] % per;
  const image = sheet(Math.floor(tiles[i] / per), then);
  if (!image) return false;
  context.drawImage(image, tile % columns * side, Math.floor(tile / columns) * side, side, side, x, y, size, size);
  return true;
}

function thumbnail(i) {
  const canvas = make("canvas", {className: "thumb"});
  canvas.setAttribute("aria-hidden", "true");
  if (!tiles || tiles[i] < 0) canvas.classList.add("none");
  else {
    canvas.width = canvas.height = data.pictures.side;
    const draw = () => picture(canvas.getContext("2d"), i, 0, 0, canvas.width, draw);
    draw();
  }
  return canvas;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

// ---- looks: colour and shape of each group

const GROUPS = 8, REST = 8, NONE = 9, DIM = 10, RING = 11, PICKED = 12, STEPS = 16;  // numbers: 16 steps from STEPS on
const SHAPES = [  // inside the shape of radius 1?
  (x, y) => x * x + y * y <= 1,
  (x, y) => y <= 0.75 && Math.abs(x) <= (y + 1.1) * 0.6,
  (x, y) => Math.max(Math.abs(x), Math.abs(y)) <= 0.85,
  (x, y) => Math.abs(x) + Math.abs(y) <= 1.2,
  (x, y) => (Math.abs(x - y) < 0.55 || Math.abs(x + y) < 0.55) && Math.max(Math.abs(x), Math.abs(y)) <= 1,
  (x, y) => y >= -0.75 && Math.abs(x) <= (1.1 - y) * 0.6,
  (x, y) => Math.min(Math.abs(x), Math.abs(y)) < 0.36 && Math.max(Math.abs(x), Math.abs(y)) <= 1.1,
  (x, y) => Math.abs(y) <= Math.abs(x) && Math.abs(x) <= 1.1,
];
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55",
  "#fee838"];
const LOOKS = {  // seaborn's colour-blind palette but for its pale ones; the eighth is the ink
  light: {groups: ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#8f5a2a", "#56b4e9", "#1b1b1b"],
    rest: "#a3a7ad", none: "#c4c7cc", dim: "#e3e5e8", ink: "#000000", page: "#ffffff", scale: [...CIVIDIS].reverse()},
  dark: {groups: ["#2b8fd0", "#de8f05", "#03b584", "#e8690c", "#cc78bc", "#ca9161", "#8fd0f5", "#f2f2f2"],
    rest: "#74797f", none: "#4d5156", dim: "#2a2d31", ink: "#ffffff", page: "#101214", scale: CIVIDIS},
};

const channels = hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));

function between(stops, share) {
  const at = share * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2);
  const [low, high] = [channels(stops[k]), channels(stops[k + 1])];
  return "#" + low.map((v, c) => Math.round(v + (high[c] - v) * (at - k)).toString(16).padStart(2, "0")).join("");
}

function look(style) {
  const looks = LOOKS[theme];
  if (style >= STEPS) return {colour: between(looks.scale, (style - STEPS) / 15), shape: 0, size: 1, alpha: 0.9};
  if (style < GROUPS) return {colour: looks.groups[style], shape: style, size: 1.1, alpha: 0.9};
  if (style === REST) return {colour: looks.rest, shape: 0, size: 0.85, alpha: 0.8};
  if (style === NONE) return {colour: looks.none, shape: 0, size: 0.75, alpha: 0.8};
  if (style === DIM) return {colour: looks.dim, shape: 0, size: 0.85, alpha: 1};
  return {colour: looks.ink, shape: 0, size: 1.2, alpha: 1};
}

// A stamp: the pixels that a point covers, as offsets into a row-major image of this width, with weights 0..256.
function stamp(style, radius, width) {
  const {colour, shape, size, alpha} = look(style), r = style === RING ? radius * 1.2 + 2.5 : radius * size;
  const half = Math.ceil(r * 1.15), inner = 1 - 1.5 / r;
  const inside = style === RING ? (x, y) => { const d = Math.hypot(x, y); return d <= 1 && d >= inner; } : SHAPES[shape];
  const offsets = [], weights = [];
  for (let v = -half; v <= half; v++) {
    for (let u = -half; u <= half; u++) {
      let hits = 0;
      for (let s = 0; s < 16; s++) hits += inside((u + (s % 4 - 1.5) / 4) / r, (v + ((s >> 2) - 1.5) / 4) / r);
      if (hits) {
        offsets.push(v * width + u);
        weights.push(Math.round(hits * 16 * alpha));
      }
    }
  }
  const [red, green, blue] = channels(colour);
  return {offsets: Int32Array.from(offsets), weights: Int32Array.from(weights), outer: blue << 16 | red, green, half};
}

// ---- a map

class Panel {
  constructor(view) {
    this.view = view;  // -1: the map of movement
    this.xy = view >= 0 ? views[view].xy : new Float32Array(2 * N);
    this.style = new Uint8Array(N);
    this.order = new Int32Array(N);
    this.chosen = [];  // by level of zoom: the products whose pictures are drawn
    this.rectangles = [];
    this.stale = true;
    this.cost = 0;
    this.canvas = make("canvas", {className: "draw", tabIndex: 0});
    const name = view >= 0 ? views[view].name : "movement";
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "map");
    this.canvas.setAttribute("aria-label", `Map of ${many(N, "product")}: ${name}`);
    this.canvas.setAttribute("aria-describedby", "how");
    this.context = this.canvas.getContext("2d", {alpha: false});
    this.layer = document.createElement("canvas");
    this.layerContext = this.layer.getContext("2d", {alpha: false});
    this.root = make("section", {className: "map"});
    this.root.append(view >= 0 ? this.heading() : this.ends(), this.canvas);
    listen(this);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  heading() {
    const {name, predicted} = views[this.view], heading = make("h2", {dir: "auto"}, name);
    if (predicted && label) {
      let asked = 0, right = 0;
      for (let i = 0; i < N; i++) {
        if (predicted.codes[i] < 0) continue;
        asked += 1;
        right += named(predicted, i) === named(label, i);
      }
      heading.append(make("span", {className: "soft"}, `right on ${number(right)} of ${number(asked)} predicted`));
    }
    return heading;
  }

  ends() {  // of the movement: a slider from one view to another
    this.root.classList.add("wide");
    const slider = make("input", {type: "range", min: 0, max: 1, step: 0.01, value: 1, id: "between"});
    slider.setAttribute("aria-label", "From the first view to the second");
    const play = make("button", {type: "button", id: "play"}, "Play");
    const first = make("strong", {dir: "auto"}), second = make("strong", {dir: "auto"});
    const name = () => {
      first.textContent = views[state.from].name;
      second.textContent = views[state.to].name;
    };
    slider.addEventListener("input", () => moveTo(Number(slider.value)));
    play.addEventListener("click", playMovement);
    name();
    const row = make("div", {className: "ends"}, play, first, slider, second);
    if (views.length > 2) {
      const pairs = make("select");
      pairs.setAttribute("aria-label", "Which movement");
      for (let a = 0; a < views.length; a++) for (let b = a + 1; b < views.length; b++) {
        pairs.append(make("option", {value: `${a} ${b}`, selected: a === 0 && b === views.length - 1},
          `${views[a].name} → ${views[b].name}`));
      }
      pairs.addEventListener("change", () => {
        [state.from, state.to] = pairs.value.split(" ").map(Number);
        name();
        moveTo(state.between);
      });
      row.append(pairs);
    }
    return row;
  }

  get visible() { return this.width > 0 && !this.root.hidden; }
  get scale() { return Math.min(this.width, this.height) * 0.92 * camera.zoom; }  // CSS pixels per unit
  get codes() {
    const {codes} = state.colour;
    return codes[codes.length === 1 ? 0 : this.view >= 0 ? this.view : state.between < 0.5 ? state.from : state.to];
  }
  screen(i) {
    const k = this.scale;
    return [(this.xy[2 * i] - camera.x) * k + this.width / 2, (this.xy[2 * i + 1] - camera.y) * k + this.height / 2];
  }
  holds(x, y) { return x > 8 && y > 8 && x < this.width - 8 && y < this.height - 8; }
  unit(x, y) { return [(x - this.width / 2) / this.scale + camera.x, (y - this.height / 2) / this.scale + camera.y]; }

  resize() {
    this.dpr = Math.min(window.devicePixelRatio || 1, 2);
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    if (!this.width) return;
    this.canvas.width = Math.round(this.width * this.dpr);
    this.canvas.height = Math.round(this.height * this.dpr);
    this.margin = Math.round(48 * this.dpr);  // seen when the layer is shifted before it is drawn anew
    this.layer.width = this.canvas.width + 2 * this.margin;
    this.layer.height = this.canvas.height + 2 * this.margin;
    this.image = this.layerContext.createImageData(this.layer.width, this.layer.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.chosen = [];
    this.stale = true;
    request();
  }

  restyle() {  // after colours, selection or highlight: each point's look, and the order of drawing
    const {colour, highlight, selected} = state, {codes} = this, classes = Boolean(colour.names);
    const bucket = new Uint8Array(N), first = new Int32Array(5);
    for (let i = 0; i < N; i++) {
      const code = codes[i];
      let style = code < 0 ? NONE : !classes ? STEPS + (code * 16 / 255 | 0) : code < GROUPS ? code : REST;
      if (!this.highlighted(i)) style = DIM;
      else if (highlight && highlight.code >= GROUPS) style = PICKED;
      if (selected && !selected[i]) style = DIM;
      this.style[i] = style;
      bucket[i] = style === DIM ? 0 : style === NONE ? 1 : style === REST ? 2 : 3;
      first[bucket[i] + 1] += 1;
    }
    for (let b = 1; b < 5; b++) first[b] += first[b - 1];
    for (let i = 0; i < N; i++) this.order[first[bucket[i]]++] = i;
    this.chosen = [];
    this.stale = true;
  }

  lit(i) { return this.style[i] !== DIM; }
  highlighted(i) {
    const {highlight} = state, code = this.codes[i];
    return !highlight || (highlight.code >= 0 ? code === highlight.code : groupOf(code) === highlight.group);
  }

  radius() {
    const {zoom} = camera, small = Math.sqrt(Math.min(this.width, this.height) / 480);
    return Math.min(Math.max(190 / Math.sqrt(N), 1.5), 4.5) * Math.min(small, 1) * Math.min(Math.max(zoom, 1) ** 0.4, 2.6);
  }

  // Points are blended into an image by hand: equally fast with and without a graphics card, and 50,000 stay fluid.
  splat() {
    const {pixels, xy, order, style, dpr} = this, width = this.layer.width, height = this.layer.height;
    const radius = this.radius() * dpr, [red, green, blue] = channels(LOOKS[theme].page);
    pixels.fill((0xff << 24 | blue << 16 | green << 8 | red) >>> 0);
    const stamps = [];
    const k = this.scale * dpr, left = width / 2 - camera.x * k, top = height / 2 - camera.y * k;
    const put = (i, kind) => {
      const {offsets, weights, outer, green, half} = stamps[kind] || (stamps[kind] = stamp(kind, radius, width));
      const x = Math.round(xy[2 * i] * k + left), y = Math.round(xy[2 * i + 1] * k + top);
      if (x < half || y < half || x >= width - half || y >= height - half) return;
      const centre = y * width + x;
      for (let n = 0; n < offsets.length; n++) {
        const at = centre + offsets[n], weight = weights[n], under = pixels[at], keep = 256 - weight;
        const both = (Math.imul(under & 0xff00ff, keep) + Math.imul(outer, weight)) >>> 8 & 0xff00ff;
        pixels[at] = 0xff000000 | both | Math.imul(under >>> 8 & 0xff, keep) + Math.imul(green, weight) & 0xff00;
      }
    };
    for (let n = 0; n < N; n++) put(order[n], style[order[n]]);
    for (const i of state.matched) put(i, RING);
    this.layerContext.putImageData(this.image, 0, 0);
    this.at = {...camera, scale: this.scale};
    this.stale = false;
  }

  paint(now) {
    const moved = !this.at || this.at.x !== camera.x || this.at.y !== camera.y || this.at.scale !== this.scale;
    // On a slow machine the old layer is shifted and stretched while the hand moves, and drawn anew now and then.
    if (this.stale || moved && (settled || this.cost < 12 || now - this.last > 8 * this.cost)) {
      const start = performance.now();
      this.splat();
      this.cost = performance.now() - start;
      this.last = now;
    }
    const {context, dpr} = this, ratio = this.scale / this.at.scale, k = this.scale * dpr;
    const w = this.canvas.width, h = this.canvas.height;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = LOOKS[theme].page;
    if (ratio !== 1 || moved) context.fillRect(0, 0, w, h);
    context.setTransform(ratio, 0, 0, ratio, w / 2 + (this.at.x - camera.x) * k - this.layer.width / 2 * ratio,
      h / 2 + (this.at.y - camera.y) * k - this.layer.height / 2 * ratio);
    context.drawImage(this.layer, 0, 0);
    context.setTransform(dpr, 0, 0, dpr, 0, 0);
    this.paintPictures();
    this.paintMarks();
  }

  // The more zoom, the more pictures: at each level as many as keep their distance, products in their random order.
  paintPictures() {
    this.rectangles = [];
    if (!tiles || !$("pictures").checked) return;
    const level = Math.max(0, Math.floor(Math.log2(camera.zoom) + 0.01));
    const size = Math.min(data.pictures.side, (this.width < 380 ? 22 : 28) + 5 * level);
    const chosen = this.chosen[level] || (this.chosen[level] = this.choose(level, size * [1.9, 1.6, 1.3, 1.1][Math.min(level, 3)]));
    const {context} = this;
    for (const i of chosen) {
      const [x, y] = this.screen(i);
      if (x < -size || y < -size || x > this.width + size || y > this.height + size) continue;
      const left = Math.round(x - size / 2), top = Math.round(y - size / 2);
      context.fillStyle = look(this.style[i]).colour;
      context.fillRect(left - 2, top - 2, size + 4, size + 4);
      if (picture(context, i, left, top, size, request)) this.rectangles.push([i, left - 2, top - 2, size + 4]);
    }
  }

  choose(level, distance) {
    const step = distance / (Math.min(this.width, this.height) * 0.92 * 2 ** level), cells = Math.ceil(1 / step) + 2;
    const taken = new Int32Array(cells * cells).fill(-1), chosen = [], {xy} = this;
    for (let i = 0; i < N; i++) {
      if (tiles[i] < 0 || !this.lit(i)) continue;
      const x = xy[2 * i], y = xy[2 * i + 1], column = Math.floor(x / step), row = Math.floor(y / step);
      let free = taken[row * cells + column] < 0;
      for (let v = Math.max(row - 1, 0); free && v <= row + 1; v++) for (let u = Math.max(column - 1, 0); u <= column + 1; u++) {
        const other = taken[v * cells + u];
        if (other >= 0 && Math.abs(xy[2 * other] - x) < step && Math.abs(xy[2 * other + 1] - y) < step) free = false;
      }
      if (!free) continue;
      taken[row * cells + column] = i;
      chosen.push(i);
    }
    return chosen;
  }

  paintMarks() {
    const {context} = this, ink = LOOKS[theme].ink, halo = LOOKS[theme].page;
    const stroke = (width, path) => {  // with a halo, so that it is seen on any colour
      for (const [colour, more] of [[halo, 3], [ink, 0]]) {
        context.strokeStyle = colour;
        context.lineWidth = width + more;
        context.beginPath();
        path();
        context.stroke();
      }
    };
    const ring = (x, y, r) => { context.moveTo(x + r, y); context.arc(x, y, r, 0, 7); };
    const place = (view, i) => {
      const {xy} = views[view], k = this.scale;
      return [(xy[2 * i] - camera.x) * k + this.width / 2, (xy[2 * i + 1] - camera.y) * k + this.height / 2];
    };
    const trail = (i, width) => {  // from where the product was before
      if (views.length < 2 || this.view === state.from) return;
      const [x0, y0] = place(state.from, i), [x1, y1] = place(this.view >= 0 ? this.view : state.to, i);
      if (Math.hypot(x1 - x0, y1 - y0) < 6) return;
      const angle = Math.atan2(y1 - y0, x1 - x0), tip = 7;
      stroke(width, () => {
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
        for (const turn of [2.7, -2.7]) {
          context.moveTo(x1, y1);
          context.lineTo(x1 + tip * Math.cos(angle + turn), y1 + tip * Math.sin(angle + turn));
        }
      });
    };
    const mark = (x, y, width) => {  // a ring, or at the edge of the map an arrow to what is outside
      if (this.holds(x, y)) return stroke(width, () => ring(x, y, 11));
      const u = Math.min(Math.max(x, 12), this.width - 12), v = Math.min(Math.max(y, 12), this.height - 12);
      const angle = Math.atan2(y - v, x - u), at = turn => [u + 10 * Math.cos(angle + turn), v + 10 * Math.sin(angle + turn)];
      stroke(width, () => {
        context.moveTo(...at(2.5));
        context.lineTo(...at(0));
        context.lineTo(...at(-2.5));
      });
    };
    if (this.view < 0) for (const i of state.chosen.slice(0, 60)) trail(i, 0.6);
    if (state.pinned >= 0) {
      const {pinned} = state, [x, y] = this.screen(pinned);
      const {neighbours, k} = views[this.view >= 0 ? this.view : state.between < 0.5 ? state.from : state.to];
      if (neighbours) stroke(1, () => {
        for (const j of neighbours.subarray(pinned * k, pinned * k + k)) {
          if (j < 0) continue;
          const [u, v] = this.screen(j);
          context.moveTo(x, y);
          context.lineTo(u, v);
          ring(u, v, 5);
        }
      });
      trail(pinned, 1.2);
      mark(x, y, 3);
      if (this.holds(x, y) && picture(context, pinned, x - 20, y - 62, 40, request)) {
        context.strokeStyle = ink;
        context.lineWidth = 2;
        context.strokeRect(x - 20, y - 62, 40, 40);
      }
    }
    if (state.hovered >= 0 && state.hovered !== state.pinned) {
      const [x, y] = this.screen(state.hovered);
      trail(state.hovered, 1.2);
      mark(x, y, 2.5);
    }
    if (this.path) {
      context.fillStyle = ink + "22";
      context.beginPath();
      for (const [x, y] of this.path) context.lineTo(x, y);
      context.closePath();
      context.fill();
      stroke(1.5, () => {
        for (const [x, y] of this.path) context.lineTo(x, y);
        context.closePath();
      });
    }
    if (this.cross) {
      const x = this.width / 2, y = this.height / 2;
      stroke(1.5, () => {
        for (const s of [-1, 1]) {
          context.moveTo(x + 4 * s, y); context.lineTo(x + 16 * s, y);
          context.moveTo(x, y + 4 * s); context.lineTo(x, y + 16 * s);
        }
      });
    }
  }

  // The product under a point of the screen, or -1: a picture first, then the nearest point within reach, lit ones first.
  hit(x, y, reach) {
    for (let n = this.rectangles.length - 1; n >= 0; n--) {
      const [i, left, top, size] = this.rectangles[n];
      if (x >= left && y >= top && x < left + size && y < top + size) return i;
    }
    const [px, py] = this.unit(x, y), r = reach / this.scale, grid = this.grid || (this.grid = cellsOf(this.xy));
    let best = -1, least = Infinity;
    const range = v => [Math.max(Math.floor((v - r) * CELLS), 0), Math.min(Math.floor((v + r) * CELLS), CELLS - 1)];
    const [u0, u1] = range(px), [v0, v1] = range(py);
    for (let v = v0; v <= v1; v++) for (let u = u0; u <= u1; u++) {
      for (let n = grid.start[v * CELLS + u]; n < grid.start[v * CELLS + u + 1]; n++) {
        const i = grid.member[n], d = (this.xy[2 * i] - px) ** 2 + (this.xy[2 * i + 1] - py) ** 2;
        const rank = d + (this.lit(i) ? 0 : 9);
        if (d <= r * r && rank < least) { least = rank; best = i; }
      }
    }
    return best;
  }

  within(path) {  // the products inside a polygon of the screen; of the highlighted class, if one is
    const inside = [];
    const xs = path.map(p => p[0]), ys = path.map(p => p[1]);
    const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    for (let i = 0; i < N; i++) {
      const [x, y] = this.screen(i);
      if (x < x0 || x > x1 || y < y0 || y > y1) continue;
      let odd = false;
      for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
        const [xa, ya] = path[a], [xb, yb] = path[b];
        if ((ya > y) !== (yb > y) && x < (xb - xa) * (y - ya) / (yb - ya) + xa) odd = !odd;
      }
      if (odd && this.highlighted(i)) inside.push(i);
    }
    return inside;
  }
}

const CELLS = 160;

// Points by cell of a grid over the unit square: the members of cell c are member[start[c]] to member[start[c + 1]].
function cellsOf(xy) {
  const cell = new Int32Array(N), start = new Int32Array(CELLS * CELLS + 1), member = new Int32Array(N);
  const at = v => Math.min(Math.floor(v * CELLS), CELLS - 1);
  for (let i = 0; i < N; i++) {
    cell[i] = at(xy[2 * i + 1]) * CELLS + at(xy[2 * i]);
    start[cell[i] + 1] += 1;
  }
  for (let c = 0; c < CELLS * CELLS; c++) start[c + 1] += start[c];
  const next = start.slice();
  for (let i = 0; i < N; i++) member[next[cell[i]]++] = i;
  return {start, member};
}

// ---- frames

function request() {
  if (!pending) pending = requestAnimationFrame(now => {
    pending = 0;
    for (const panel of panels) if (panel.visible) panel.paint(now);
    drawn = drawn || performance.now();
  });
}

function cameraMoved() {
  camera.zoom = Math.min(Math.max(camera.zoom, 0.7), 100);
  camera.x = Math.min(Math.max(camera.x, -0.1), 1.1);
  camera.y = Math.min(Math.max(camera.y, -0.1), 1.1);
  settled = false;
  clearTimeout(rest);
  rest = setTimeout(() => { settled = true; request(); }, 120);
  request();
}

function zoomAt(panel, x, y, factor) {
  const [px, py] = panel.unit(x, y);
  camera.zoom = Math.min(Math.max(camera.zoom * factor, 0.7), 100);
  const [qx, qy] = panel.unit(x, y);
  camera.x += px - qx;
  camera.y += py - qy;
  cameraMoved();
}

function fit() {
  Object.assign(camera, {x: 0.5, y: 0.5, zoom: 1});
  cameraMoved();
}

function restyle() {
  for (const panel of panels) panel.restyle();
  request();
}

// ---- movement

function moveTo(share) {
  const panel = panels.find(p => p.view < 0), {xy} = panel, a = views[state.from].xy, b = views[state.to].xy;
  state.between = share;
  for (let n = 0; n < xy.length; n++) xy[n] = a[n] + (b[n] - a[n]) * share;
  panel.grid = null;
  if (state.colour.codes.length > 1) panel.restyle();
  panel.stale = true;
  panel.chosen = [];
  $("between").value = share;
  request();
}

let playing = 0;
function playMovement() {
  cancelAnimationFrame(playing);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches, start = performance.now();
  const step = now => {
    const share = still ? 1 : Math.min(Math.max((now - start) / 2200, 0), 1);
    moveTo(share * share * (3 - 2 * share));
    if (share < 1) playing = requestAnimationFrame(step);
  };
  moveTo(0);
  playing = requestAnimationFrame(step);
}

// ---- what happens to a product

const say = text => { $("status").textContent = text; };

function hover(i, panel = null, x = 0, y = 0) {
  state.hovered = i;
  const tip = $("tip");
  tip.hidden = i < 0 || !panel;
  if (!tip.hidden) {
    if (tip.product !== i) {
      tip.product = i;
      tip.replaceChildren(thumbnail(i), make("div", {}, make("span", {className: "title", dir: "auto"}, data.titles[i]),
        named(label, i) === null ? null : make("span", {className: "label", dir: "auto"}, named(label, i)),
        ...predictions(i).map(line => make("div", {}, line))));
    }
    const {left, top} = panel.canvas.getBoundingClientRect(), gap = 16;
    const right = left + x + gap + tip.offsetWidth > innerWidth, low = top + y + gap + tip.offsetHeight > innerHeight;
    tip.style.left = Math.max(4, right ? left + x - gap - tip.offsetWidth : left + x + gap) + "px";
    tip.style.top = Math.max(4, low ? top + y - gap - tip.offsetHeight : top + y + gap) + "px";
  }
  request();
}

function predictions(i) {
  return views.filter(view => named(view.predicted, i) !== null).map(view => {
    const guess = named(view.predicted, i), right = guess === named(label, i);
    return make("span", {}, make("span", {className: "soft"}, view.name + ": "), make("span",
      {className: label ? right ? "good" : "bad" : "", dir: "auto"}, (label ? right ? "✓ " : "✗ " : "") + guess));
  });
}

function product(i, same = false, more = "") {
  const text = make("span", {className: "text"}, make("span", {className: "title", dir: "auto"}, data.titles[i]),
    make("span", {className: "label", dir: "auto"}, [named(label, i), more].filter(Boolean).join(" · ")));
  const button = make("button", {type: "button", className: "product" + (same ? " same" : "")}, thumbnail(i), text);
  button.dataset.i = i;
  return make("li", {}, button);
}

function pin(i, announce = true) {
  state.pinned = i;
  const section = $("pinned");
  section.replaceChildren();
  if (i >= 0) {
    const list = make("dl", {className: "facts"});
    const add = (name, value) => list.append(make("dt", {}, name), make("dd", {dir: "auto"}, value));
    if (data.ids) add("Id", data.ids[i]);
    for (const fact of facts) if (fact !== label && named(fact, i) !== null) add(fact.name, named(fact, i));
    const close = make("button", {type: "button"}, "Unpin");
    close.addEventListener("click", () => { pin(-1); $("maps").focus(); });
    section.append(make("div", {className: "head"}, thumbnail(i), make("div", {},
      make("h2", {className: "title", dir: "auto"}, data.titles[i]),
      make("p", {className: "label", dir: "auto"}, named(label, i) || ""),
      ...predictions(i).map(line => make("p", {}, line)), close)), list);
    const sides = make("div", {className: "sides"}), near = view => view.neighbours.subarray(i * view.k, i * view.k + view.k);
    const having = views.filter(view => view.neighbours);
    for (const view of having) {
      const others = having.filter(other => other !== view);
      const items = make("ol", {className: "list"});
      for (const j of near(view)) {
        if (j < 0) continue;
        const both = others.length > 0 && others.every(other => near(other).includes(j));
        items.append(product(j, named(label, j) !== null && named(label, j) === named(label, i), both ? "in both" : ""));
      }
      sides.append(make("div", {}, make("h3", {dir: "auto"}, `Nearest in ${view.name}`), items));
    }
    section.append(sides);
    if (having.length && label) section.append(make("p", {className: "soft"}, "A green edge: the same class as the pinned product."));
    if (announce) say(`Pinned: ${data.titles[i]}`);
    reveal(i);
    $("side").scrollTop = 0;
  } else if (announce) say("Nothing pinned");
  request();
}

function reveal(i) {  // bring the product into view where no map shows it
  const visible = panels.filter(panel => panel.visible);
  if (visible.some(panel => panel.holds(...panel.screen(i)))) return;
  const spots = visible.map(panel => [panel.xy[2 * i], panel.xy[2 * i + 1]]);
  const middle = axis => (Math.min(...spots.map(s => s[axis])) + Math.max(...spots.map(s => s[axis]))) / 2;
  const spread = Math.max(...[0, 1].map(axis => Math.max(...spots.map(s => Math.abs(s[axis] - middle(axis))))));
  Object.assign(camera, {x: middle(0), y: middle(1), zoom: Math.min(camera.zoom, 0.4 / Math.max(spread, 0.004))});
  cameraMoved();
}

function select(rows, what = "selected") {
  state.chosen = rows;
  state.selected = rows.length ? new Uint8Array(N) : null;
  for (const i of rows) state.selected[i] = 1;
  listSelected();
  say(rows.length ? `${many(rows.length, "product")} ${what}` : "Nothing selected");
  restyle();
}

function listSelected() {
  const section = $("selected"), rows = state.chosen;
  section.replaceChildren();
  if (!rows.length) return;
  const clear = make("button", {type: "button"}, "Clear");
  clear.addEventListener("click", () => { select([]); $("maps").focus(); });
  section.append(make("div", {className: "head"}, make("h2", {}, many(rows.length, "product") + " selected"), clear));
  if (label) {
    const counts = new Map(), all = new Map();
    for (const i of rows) counts.set(label.codes[i], (counts.get(label.codes[i]) || 0) + 1);
    for (const code of label.codes) all.set(code, (all.get(code) || 0) + 1);
    const top = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const bars = make("ul", {className: "bars"});
    for (const [code, count] of top.slice(0, 8)) {
      const name = code < 0 ? "no class" : label.names[code];
      bars.append(make("li", {}, make("span", {dir: "auto", className: "label"}, name),
        make("span", {className: "count"}, ` ${number(count)} of the ${number(all.get(code))} there are`),
        Object.assign(make("meter", {min: 0, max: rows.length, value: count}), {ariaLabel: `${name}: share of the selection`})));
    }
    section.append(make("h3", {}, many(top.length, "class").replace("classs", "classes")), bars);
    if (top.length > 8) section.append(make("p", {className: "soft"}, `and ${number(top.length - 8)} more`));
  }
  const sorted = [...rows].sort((a, b) => (label ? label.codes[a] - label.codes[b] : 0) || (data.titles[a] < data.titles[b] ? -1 : 1));
  const items = make("ul", {className: "list"});
  const more = make("button", {type: "button"});
  const show = () => {
    const shown = items.children.length;
    items.append(...sorted.slice(shown, shown + 100).map(i => product(i)));
    const left = sorted.length - items.children.length;
    more.hidden = left === 0;
    more.textContent = `Show ${number(Math.min(left, 100))} more of ${number(left)}`;
  };
  more.addEventListener("click", show);
  show();
  section.append(make("h3", {}, "Titles"), items, more);
}

// ---- pointer and keys on a map

function listen(panel) {
  const {canvas} = panel, fingers = new Map();
  let pressed = null, spread = 0;
  const at = event => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pinch = () => {
    const [[ax, ay], [bx, by]] = [...fingers.values()];
    return {x: (ax + bx) / 2, y: (ay + by) / 2, spread: Math.hypot(ax - bx, ay - by)};
  };
  canvas.addEventListener("pointerdown", event => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    panel.cross = false;
    fingers.set(event.pointerId, at(event));
    if (fingers.size === 2) {
      pressed = panel.path = null;
      spread = pinch();
    } else if (fingers.size === 1) {
      const tool = event.shiftKey ? "lasso" : state.tool;
      pressed = {start: at(event), last: at(event), tool, dragged: false, touch: event.pointerType === "touch"};
    }
  });
  canvas.addEventListener("pointermove", event => {
    const [x, y] = at(event);
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [x, y]);
    if (fingers.size === 2) {
      const now = pinch();
      camera.x -= (now.x - spread.x) / panel.scale;
      camera.y -= (now.y - spread.y) / panel.scale;
      zoomAt(panel, now.x, now.y, now.spread / Math.max(spread.spread, 1));
      spread = now;
      return;
    }
    if (!pressed) {
      if (event.pointerType !== "touch") hover(panel.hit(x, y, 10), panel, x, y);
      return;
    }
    const [x0, y0] = pressed.start, [lastX, lastY] = pressed.last;
    if (!pressed.dragged && Math.hypot(x - x0, y - y0) < 5) return;
    if (!pressed.dragged) hover(-1);
    pressed.dragged = true;
    pressed.last = [x, y];
    if (pressed.tool === "move") {
      camera.x -= (x - lastX) / panel.scale;
      camera.y -= (y - lastY) / panel.scale;
      cameraMoved();
    } else {
      panel.path = pressed.tool === "box" ? [[x0, y0], [x, y0], [x, y], [x0, y]] : [...(panel.path || [[x0, y0]]), [x, y]];
      request();
    }
  });
  const release = event => {
    fingers.delete(event.pointerId);
    if (!pressed) return;
    const {dragged, touch} = pressed, [x, y] = at(event), path = panel.path;
    pressed = panel.path = null;
    if (event.type === "pointercancel") request();
    else if (path) {
      const inside = panel.within(path);
      select(event.ctrlKey || event.metaKey ? [...new Set([...state.chosen, ...inside])] : inside);
    } else if (!dragged) {
      const i = panel.hit(x, y, touch ? 22 : 10);
      if (i >= 0) pin(i);
      if (touch) hover(i, i >= 0 ? panel : null, x, y);
    }
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => { if (!pressed) hover(-1); });
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoomAt(panel, ...at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
  }, {passive: false});
  const aim = () => {  // by keyboard the product nearest to the middle is the one pointed at
    const x = panel.width / 2, y = panel.height / 2;
    panel.cross = true;
    hover(panel.hit(x, y, 40), panel, x, y);
    if (state.hovered >= 0) say(data.titles[state.hovered]);
  };
  canvas.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = (event.shiftKey ? 160 : 40) / panel.scale;
    const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
    if (moves[event.key]) {
      camera.x += moves[event.key][0];
      camera.y += moves[event.key][1];
      cameraMoved();
    } else if (event.key === "+" || event.key === "=") zoomAt(panel, panel.width / 2, panel.height / 2, 1.4);
    else if (event.key === "-" || event.key === "_") zoomAt(panel, panel.width / 2, panel.height / 2, 1 / 1.4);
    else if (event.key === "0") fit();
    else if (event.key === "Enter") {
      if (panel.cross && state.hovered >= 0) pin(state.hovered);
    } else if (event.key === "s" || event.key === "S") {
      const [w, h] = [panel.width, panel.height];
      select(panel.within([[0, 0], [w, 0], [w, h], [0, h]]), "in view selected");
    } else return;
    event.preventDefault();
    aim();
  });
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) aim(); });
  canvas.addEventListener("blur", () => {
    panel.cross = false;
    hover(-1);
  });
}

addEventListener("keydown", event => {
  if (event.key !== "Escape" || event.defaultPrevented) return;
  if (state.highlight) highlight(null);
  else if (state.chosen.length) select([]);
  else if (state.pinned >= 0) pin(-1);
  hover(-1);
});

// ---- legend

const groupOf = code => code < 0 ? NONE : code < GROUPS ? code : REST;

function swatch(style) {
  const canvas = document.createElement("canvas"), side = canvas.width = canvas.height = 28;
  const {offsets, weights, outer, green} = stamp(style, 9, side), context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  offsets.forEach((offset, n) => {
    const at = (side / 2 * side + side / 2 + offset) * 4;
    image.data.set([outer & 0xff, green, outer >> 16, Math.min(weights[n], 255)], at);
  });
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-hidden", "true");
  return canvas;
}

function legend() {
  const {colour} = state, root = $("legend");
  root.replaceChildren();
  if (!colour.names) {
    const bar = make("canvas", {className: "scale", width: 160, height: 12}), context = bar.getContext("2d");
    for (let k = 0; k < 16; k++) {
      context.fillStyle = look(STEPS + k).colour;
      context.fillRect(k * 10, 0, 10, 12);
    }
    bar.setAttribute("role", "img");
    const share = colour.low >= 0 && colour.high <= 1 && colour.high > 0;
    const text = v => share ? `${Math.round(v * 100)}%` : String(Number(v.toPrecision(3)));
    bar.setAttribute("aria-label", `A scale from ${text(colour.low)} to ${text(colour.high)}`);
    root.append(text(colour.low), bar, text(colour.high));
    return;
  }
  const counts = colour.codes.map(codes => {
    const count = new Map();
    for (const code of codes) count.set(groupOf(code), (count.get(groupOf(code)) || 0) + 1);
    return count;
  });
  for (let group = 0; group <= NONE; group++) {
    const each = counts.map(count => count.get(group) || 0);
    if (!Math.max(...each)) continue;
    const others = colour.names.length - GROUPS;
    const name = group < GROUPS ? colour.names[group] : group === REST ? `${number(others)} other${others === 1 ? "" : "s"}` : "no value";
    const button = make("button", {type: "button"}, swatch(group), make("span", {dir: "auto"}, name),
      make("span", {className: "count"}, each.map(number).join(" | ")));
    const on = state.highlight && state.highlight.group === group;
    button.setAttribute("aria-pressed", String(Boolean(on)));
    button.addEventListener("click", () => {
      highlight(on ? null : {group, name});
      [...root.querySelectorAll("button")].find(b => b.firstChild.nextSibling.textContent === name)?.focus();
    });
    root.append(button);
  }
  if (colour.names.length > GROUPS + 1) {
    const menu = make("select", {}, make("option", {value: ""}, "highlight another …"));
    menu.setAttribute("aria-label", "Highlight another class");
    colour.names.slice(GROUPS).forEach((name, k) => menu.append(make("option", {value: GROUPS + k}, name)));
    if (state.highlight?.code >= 0) menu.value = state.highlight.code;
    menu.addEventListener("change", () => {
      const code = Number(menu.value);
      highlight(menu.value === "" ? null : {code, name: colour.names[code]});
      root.querySelector("select").focus();
    });
    root.append(menu);
  }
}

function highlight(what) {
  state.highlight = what;
  say(what ? `Highlighted: ${what.name}` : "No highlight");
  legend();
  restyle();
}

// ---- search

const folded = text => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
let index = null, active = -1;

function search() {
  const words = folded($("search").value).split(/\s+/).filter(Boolean), list = $("matches");
  index = index || data.titles.map(folded);
  state.matched = [];
  if (words.length) for (let i = 0; i < N; i++) if (words.every(word => index[i].includes(word))) state.matched.push(i);
  active = -1;
  $("search").removeAttribute("aria-activedescendant");
  list.replaceChildren(...state.matched.slice(0, 20).map((i, k) => {
    const option = make("li", {id: "match" + k}, thumbnail(i), make("span", {dir: "auto"}, data.titles[i]));
    option.dataset.i = i;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", "false");
    return option;
  }));
  unfold(words.length > 0 && state.matched.length > 0);
  say(words.length ? `${many(state.matched.length, "title")} match${state.matched.length === 1 ? "es" : ""}` : "");
  for (const panel of panels) panel.stale = true;
  request();
}

function unfold(open) {
  $("matches").hidden = !open;
  $("search").setAttribute("aria-expanded", String(open));
}

function activate(k) {
  const options = [...$("matches").children];
  options.forEach((option, n) => option.setAttribute("aria-selected", String(n === k)));
  active = k;
  if (k < 0) $("search").removeAttribute("aria-activedescendant");
  else {
    $("search").setAttribute("aria-activedescendant", options[k].id);
    options[k].scrollIntoView({block: "nearest"});
  }
  hover(k < 0 ? -1 : Number(options[k].dataset.i));
}

$("search").addEventListener("input", search);
$("search").addEventListener("keydown", event => {
  const count = $("matches").children.length;
  if ((event.key === "ArrowDown" || event.key === "ArrowUp") && count) {
    unfold(true);
    const step = event.key === "ArrowDown" ? 1 : -1;
    activate(active < 0 && step < 0 ? count - 1 : (active + step + count + 1) % (count + 1) === count ? -1 : (active + step + count + 1) % (count + 1));
  } else if (event.key === "Enter") {
    if (active >= 0) pin(state.matched[active]);
    else if (state.matched.length) select([...state.matched]);
    unfold(false);
  } else if (event.key === "Escape" && $("search").value) {
    $("search").value = "";
    search();
  } else return;
  event.preventDefault();
});
$("search").addEventListener("blur", () => { unfold(false); hover(-1); });
$("search").addEventListener("focus", () => unfold(state.matched.length > 0));
$("matches").addEventListener("pointerdown", event => {
  event.preventDefault();  // the focus stays in the field
  const option = event.target.closest("[data-i]");
  if (option) { pin(Number(option.dataset.i)); unfold(false); }
});

// ---- the rest of the page

function show() {  // the layout
  for (const panel of panels) panel.root.hidden = (panel.view < 0) !== (state.layout === "move");
  request();
}

function shade(dark) {
  theme = dark ? "dark" : "light";
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark ? "Switch to light colours" : "Switch to dark colours");
  for (const panel of panels) panel.stale = true;
  legend();
  request();
}

for (const [event, on] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
  for (const id of ["side", "matches"]) $(id).addEventListener(event, e => {
    const row = e.target.closest("[data-i]");
    if (row) hover(on ? Number(row.dataset.i) : -1);
  });
}
$("side").addEventListener("click", event => {
  const row = event.target.closest("button[data-i]");
  if (!row) return;
  pin(Number(row.dataset.i));
  $("pinned").querySelector("button")?.focus({preventScroll: true});
});
if (data.examples.length) $("examples").append(make("span", {className: "soft"}, "Show me:"));
for (const example of data.examples) {
  let next = 0;
  const button = make("button", {type: "button", dir: "auto"}, example.name);
  button.addEventListener("click", () => pin(example.rows[next++ % example.rows.length]));
  $("examples").append(button);
}
for (const colour of data.colours) $("colour").append(make("option", {}, colour.name));
$("colour").addEventListener("change", () => {
  state.colour = data.colours[$("colour").selectedIndex];
  state.highlight = null;
  legend();
  restyle();
});
for (const input of document.getElementsByName("tool")) input.addEventListener("change", () => {
  state.tool = input.value;
  for (const panel of panels) panel.canvas.classList.toggle("aim", input.value !== "move");
});
for (const input of document.getElementsByName("layout")) input.addEventListener("change", () => {
  state.layout = input.value;
  show();
  if (state.layout === "move") playMovement();
});
const middle = factor => {
  const panel = panels.find(p => p.visible);
  zoomAt(panel, panel.width / 2, panel.height / 2, factor);
};
$("in").addEventListener("click", () => middle(1.5));
$("out").addEventListener("click", () => middle(1 / 1.5));
$("fit").addEventListener("click", fit);
$("pictures").addEventListener("change", request);
$("theme").addEventListener("click", () => shade(theme === "light"));
$("help").addEventListener("click", () => {
  const open = $("keys").hidden;
  $("keys").hidden = !open;
  $("help").setAttribute("aria-expanded", String(open));
});

for (const id of ["main", "theme", "how"]) $(id).hidden = false;
$("colouring").hidden = data.colours.length < 2;
$("picturing").hidden = !tiles;
$("layout").hidden = views.length < 2;
$("note").textContent = data.note;
const dark = matchMedia("(prefers-color-scheme: dark)");
theme = dark.matches ? "dark" : "light";
views.forEach((_, k) => panels.push(new Panel(k)));
if (views.length > 1) {
  panels.push(new Panel(-1));
  panels[views.length].xy.set(views[state.to].xy);
}
$("maps").append(...panels.map(panel => panel.root));
shade(dark.matches);
dark.addEventListener("change", () => shade(dark.matches));
restyle();
show();
say(`${many(N, "product")}, ${many(views.length, "map")}`);

// For tests and the curious: read only.
window.icssl = Object.freeze({
  state: () => ({hovered: state.hovered, pinned: state.pinned, selected: [...state.chosen], matched: state.matched.length,
    camera: {...camera}, drawn, cost: panels.filter(p => p.visible).map(p => p.cost)}),
  where: (view, i) => {  // of product i, from the top left corner of the map's canvas
    const panel = panels.find(p => p.view === view);
    return panel.screen(i);
  },
  find: title => data.titles.indexOf(title),
});
})();
